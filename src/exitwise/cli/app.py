"""The commands by their names, in the order in which a new user meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from .building import kernel
from .converting import convert
from .cutting import cut
from .learning import calibrate
from .looking import families, inspect, methods
from .measuring import bench, demo, report
from .reproducing import reproduce
from .running import run
from .training import train

app = typer.Typer(
    name="exitwise",
    help="Makes a transformer stop computing when its answer is ready.\n\nBegin with `exitwise demo`; every --help has an example.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"exitwise {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    pass


PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Begin": (demo, run, inspect),
    "Make exits": (convert, train, calibrate, cut),
    "Measure": (bench, reproduce, report),
    "What there is": (methods, families),
    "This machine": (kernel,),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
