"""Phi 3, 3.5 and 4 (mini): a decoder built as Llama is, with one weight for queries, keys and values, and windows in some sizes."""

from __future__ import annotations

from typing import Any

from ..stack import Family, Language, Stack
from .llama import embed, readout, rotary, small, window


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Phi 3 of width 32 that looks back over 6 tokens, and two prompts."""
    return small("Phi3", original_max_position_embeddings=256, sliding_window=6)


FAMILY = Family(
    model_types=("phi3",),
    classes=("Phi3ForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=readout,
    language=Language(embed, rotary, window, norm="model.norm"),
    about="Phi3ForCausalLM",
    tiny=tiny,
)
