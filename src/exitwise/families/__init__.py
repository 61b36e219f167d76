"""The families of models that Exitwise knows: one file each in this folder, found by name, imported when asked for."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points

from torch import nn

from ..errors import unknown
from ..stack import Family, discover

GROUP = "exitwise.families"


def names() -> list[str]:
    """The files of this folder and the entry points of other packages, sorted."""
    here = [m.name for m in pkgutil.iter_modules(__path__)]
    return sorted({*here, *(e.name for e in entry_points(group=GROUP))})


def load(name: str) -> Family:
    """The family in `name`.py (or in another package's entry point). Raises UnknownName with the near miss."""
    if name in {m.name for m in pkgutil.iter_modules(__path__)}:
        family = importlib.import_module(f"{__name__}.{name}").FAMILY
    else:
        found = {e.name: e for e in entry_points(group=GROUP)}
        if name not in found:
            raise unknown("family", name, names())
        family = found[name].load()
    assert isinstance(family, Family)
    return family


def of(model: nn.Module) -> tuple[str, Family]:
    """(name, family) for a model: the file that fits it, or ('discovered', what its structure says)."""
    for name in names():
        family = load(name)
        if family.fits(model):
            return name, family
    return "discovered", discover(model)
