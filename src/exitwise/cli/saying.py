"""How a command speaks: results on stdout, everything else on stderr; an error is one message and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

import typer

BAD_INPUT = 2  # something given cannot be used
NOT_MET = 1  # all ran, but what was asked for does not hold (a failed self-test, skipped rows with --strict)

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """The command with its ExitwiseErrors told on stderr, and with exit code 2 for them."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from ..errors import ExitwiseError

        try:
            command(*args, **kwargs)
        except ExitwiseError as error:
            note(f"{type(error).__name__}: {error}")
            raise typer.Exit(BAD_INPUT) from None

    return run


def note(text: str) -> None:
    """A line for a person, on stderr."""
    typer.echo(text, err=True)


def as_json(body: dict[str, Any]) -> None:
    """One JSON object on stdout. NaN and infinities, which JSON does not have, become null."""
    typer.echo(json.dumps(_finite(body), ensure_ascii=False, default=_plain))


def show(*parts: Any) -> None:
    """Rich tables and texts on stdout, in colour where it is a terminal."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    for part in parts:
        console.print(part)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
