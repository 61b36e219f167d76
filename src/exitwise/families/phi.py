"""Phi 1, 1.5 and 2: a decoder that turns a part of each head by position, attention and feed-forward part side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from .llama import embed, rotary, small


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.final_layernorm(hidden))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Phi of width 32, and two prompts."""
    return small("Phi")


FAMILY = Family(
    model_types=("phi",),
    classes=("PhiForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(embed, rotary, norm="model.final_layernorm"),
    about="PhiForCausalLM",
    tiny=tiny,
)
