"""How papers train language models for early exits: one file each in this folder, found by name, imported when asked for.

A file's `TEACHING` is a class of options; an instance of it makes the objective, and what is trained besides the model.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from .. import register
from ..errors import KnobError, unknown
from .base import Teaching

__all__ = ["Teaching", "about", "load", "names"]


def names() -> list[str]:
    """The files of this folder and other packages' entry points `exitwise.teach`, sorted."""
    return [name for name in register.names(__name__, __path__) if name != "base"]


def about(name: str) -> str:
    """One line: what is trained, and the options with their defaults."""
    kind = _kind(name)
    options = ", ".join(f"{field.name}={field.default}" for field in fields(kind))
    return f"{kind.about} ({kind.paper}){'; ' + options if options else ''}"


def load(name: str, **options: Any) -> Teaching:
    """The training of `name`.py with these options. Raises UnknownName, and KnobError for an option that it does not have."""
    kind = _kind(name)
    known = {field.name for field in fields(kind)}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, sorted(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise KnobError(f"The training {name} has no option {option!r}.{hint} It has: {', '.join(sorted(known))}.")
    made: Teaching = kind(**options)
    return made


def _kind(name: str) -> Any:
    if name not in names():
        raise unknown("training", name, names())
    return register.load(__name__, __path__, name, "TEACHING", "training")
