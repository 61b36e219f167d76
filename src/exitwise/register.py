"""A folder as a register: one file per name, imported when asked for; other packages join by entry point."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from .errors import unknown


def names(package: str, path: Any) -> list[str]:
    """The files of a package's folder and the entry points of the group that bears the package's name, sorted."""
    here = [m.name for m in pkgutil.iter_modules(path)]
    return sorted({*here, *(e.name for e in entry_points(group=package))})


def load(package: str, path: Any, name: str, constant: str, kind: str) -> Any:
    """`constant` of the file `name`.py, or what another package's entry point gives. Raises UnknownName with the near miss."""
    if name in {m.name for m in pkgutil.iter_modules(path)}:
        return getattr(importlib.import_module(f"{package}.{name}"), constant)
    found = {e.name: e for e in entry_points(group=package)}
    if name not in found:
        raise unknown(kind, name, names(package, path))
    return found[name].load()
