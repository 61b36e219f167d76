"""Mistral: a decoder with rotary positions and grouped keys, each layer of which may look back over a window only."""

from __future__ import annotations

from typing import Any

from ..stack import Family, Language, Stack
from .llama import embed, readout, rotary, small, window


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Mistral of width 32 that looks back over 6 tokens, and two prompts that are longer."""
    return small("Mistral", sliding_window=6)


FAMILY = Family(
    model_types=("mistral",),
    classes=("MistralForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=readout,
    language=Language(embed, rotary, window, norm="model.norm"),
    about="MistralForCausalLM",
    tiny=tiny,
)
