"""The families of models that Exitwise knows: one file each in this folder, found by name, imported when asked for."""

from __future__ import annotations

from typing import Any

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


def two_prompts() -> dict[str, Any]:
    """Two prompts of unlike length for a tiny language model, (2, 12) ids of 5..94, padded on the left with 0: for tests."""
    import torch

    ids = torch.arange(24).view(2, 12) * 7 % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}
