"""Qwen 2 and 3: a decoder with rotary positions; biases on queries, keys and values (2), or norms of queries and keys (3)."""

from __future__ import annotations

from typing import Any

from ..stack import Family, Language, Stack
from .llama import embed, readout, rotary, small, window


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Qwen 2 of width 32 whose deeper two layers look back over 6 tokens only, and two prompts."""
    return small("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=2)


def tiny_three() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Qwen 3 of width 32 with heads of width 12, and two prompts."""
    return small("Qwen3", head_dim=12)


FAMILY = Family(
    model_types=("qwen2", "qwen3"),
    classes=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=readout,
    language=Language(embed, rotary, window, norm="model.norm"),
    about="Qwen2ForCausalLM, Qwen3ForCausalLM",
    tiny=tiny,
)
