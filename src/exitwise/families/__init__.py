"""The families of models that Exitwise knows: one file each in this folder, found by name, imported when asked for."""

from __future__ import annotations

from torch import nn

from .. import register
from ..stack import Family, discover

DISCOVERED = "discovered"


def names() -> list[str]:
    """The files of this folder and other packages' entry points `exitwise.families`, sorted."""
    return register.names(__name__, __path__)


def load(name: str) -> Family:
    """The family in `name`.py, or of another package. Raises UnknownName with the near miss."""
    family = register.load(__name__, __path__, name, "FAMILY", "family")
    assert isinstance(family, Family)
    return family


def of(model: nn.Module) -> tuple[str, Family]:
    """(name, family) for a model: the file that fits it, or ('discovered', what its structure says)."""
    for name in names():
        family = load(name)
        if family.fits(model):
            return name, family
    return DISCOVERED, discover(model)
