"""The published methods: one file each in this folder, found by name, imported when asked for."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points

from ..errors import unknown
from ..method import Method

GROUP = "exitwise.methods"


def names() -> list[str]:
    """The files of this folder and the entry points of other packages, sorted."""
    here = [m.name for m in pkgutil.iter_modules(__path__)]
    return sorted({*here, *(e.name for e in entry_points(group=GROUP))})


def load(name: str) -> Method:
    """The method in `name`.py (or in another package's entry point). Raises UnknownName with the near miss."""
    if name in {m.name for m in pkgutil.iter_modules(__path__)}:
        method = importlib.import_module(f"{__name__}.{name}").METHOD
    else:
        found = {e.name: e for e in entry_points(group=GROUP)}
        if name not in found:
            raise unknown("method", name, names())
        method = found[name].load()
    assert isinstance(method, Method)
    return method
