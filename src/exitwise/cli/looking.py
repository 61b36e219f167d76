"""Commands that look and change nothing: inspect a model, list the methods and the families."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from . import options
from .saying import NOT_MET, as_json, guarded, note, show


@guarded
def inspect(
    model: options.Model = "shipped",
    check: Annotated[
        bool, typer.Option("--check", help="Test that walking this model, with this transformers, is the model itself.")
    ] = False,
    as_object: options.Json = False,
) -> None:
    """Show the stacks and streams of a model: what can leave where, and how soon its states settle.

    The settling (mean cosine across each layer) is measured on noise and random
    words: a first impression, not a promise. Ends with 1 if a part of the
    self-test fails.

    \b
    Examples:
      exitwise inspect --check
      exitwise inspect facebook/bart-base --json
    """
    from .. import inspect as room
    from ..errors import InputError
    from .loading import model_of

    loaded = model_of(model)
    report = room.inspect(loaded)
    try:
        profile = room.saturation(loaded)
        checks = room.check(loaded) if check else None
    except InputError as problem:  # no inputs can be made for this model: what was found is still worth showing
        if check:
            raise
        note(f"The settling was not measured: {problem}")
        profile, checks = {}, None
    if as_object:
        body: dict[str, Any] = {**report.to_dict(), "saturation": profile}
        as_json(body if checks is None else {**body, "checks": [asdict(each) for each in checks]})
    else:
        show(room.render(report, profile, checks))
    failed = [each.name for each in checks or () if not each.passed]
    if failed:
        note(
            f"The self-test failed at: {', '.join(failed)}. docs/adding-a-family.md says how to describe this model by a family of its own."
        )
        raise typer.Exit(NOT_MET)


@guarded
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One method, with all its knobs.")] = None,
    as_object: options.Json = False,
) -> None:
    """List the methods of early exit; with a name, the knobs of one.

    \b
    Examples:
      exitwise methods
      exitwise methods mue
    """
    from .. import methods as room

    found = {each: room.load(each) for each in ([name] if name else room.names())}
    if as_object:
        as_json({"methods": [_method(key, method) for key, method in found.items()]})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title="methods", title_justify="left")
    for column in ("method", "what leaves when", "paper"):
        table.add_column(column, overflow="fold")
    for key, method in found.items():
        table.add_row(Text(key, style="bold"), Text(method.about), Text(method.paper))
    show(table)
    if name:
        show(_knobs(found[name]))
        for each, settings in found[name].presets.items():
            show(Text(f"preset {each}: {', '.join(f'{k}={v}' for k, v in settings.items()) or 'the defaults'}"))
    else:
        show("`exitwise methods NAME` lists the knobs of one.")


def _knobs(method: Any) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="knobs (--set KNOB=VALUE)", title_justify="left")
    for column in ("knob", "default", "allowed", "what it is"):
        table.add_column(column, overflow="fold")
    for knob in method.knobs:
        table.add_row(*map(Text, (knob.name, str(knob.default), _allowed(knob), knob.about)))
    return table


def _allowed(knob: Any) -> str:
    if knob.choices is not None:
        return ", ".join(map(str, knob.choices))
    return "any" if knob.low is None and knob.high is None else f"{knob.low:g} .. {knob.high:g}"


def _method(name: str, method: Any) -> dict[str, Any]:
    knobs = [
        {"name": k.name, "default": k.default, "about": k.about, "low": k.low, "high": k.high, "choices": k.choices} for k in method.knobs
    ]
    return {
        "name": name,
        "about": method.about,
        "paper": method.paper,
        "calibrated": method.calibrated,
        "knobs": knobs,
        "presets": method.presets,
    }


@guarded
def families(as_object: options.Json = False) -> None:
    """List the model families whose layers are described; others are discovered by their structure, if that passes the self-test.

    \b
    Example:
      exitwise families
    """
    from .. import families as room

    found = {name: room.load(name) for name in room.names()}
    if as_object:
        bodies = [
            {"name": name, "about": f.about, "model_types": f.model_types, "classes": f.classes, "readout": f.readout is not None}
            for name, f in found.items()
        ]
        as_json({"families": bodies})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title="families", title_justify="left")
    for column in ("family", "models", "config.model_type"):
        table.add_column(column, overflow="fold")
    for name, family in found.items():
        table.add_row(Text(name, style="bold"), Text(family.about), Text(", ".join(family.model_types)))
    show(table, "Another model? `exitwise inspect MODEL --check` tries to discover its stacks.")
