"""Gemma 1, 2 and 3 (text): a decoder with scaled embeddings and a tied head; from 2 on, layers that look back over a window between
those that see all, and logits that are capped softly (2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..stack import Family, Language, Stack
from .llama import small, window


def _readout(model: Any, hidden: Tensor) -> Tensor:
    """Capped as the model caps them: the largest answer stays the largest, but how sure it looks does not stay."""
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Tokens scaled by the root of the width: by the embedding itself, in older versions of the library by the model."""
    words = model.model.embed_tokens
    states: Tensor = words(ids)
    return states if hasattr(words, "embed_scale") else states * torch.tensor(model.config.hidden_size**0.5, dtype=states.dtype)


def _rotary(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    """Rotary tables: from 3 on, those of each kind of layer."""
    turn: Any = model.model.rotary_emb
    kinds: list[str] = list(getattr(model.config, "layer_types", None) or ())
    if model.config.model_type != "gemma3_text":
        aids = {"position_embeddings": turn(states, positions), "position_ids": positions}
        return lambda layer: aids
    made = {kind: {"position_embeddings": turn(states, positions, kind), "position_ids": positions} for kind in set(kinds)}
    return lambda layer: made[kinds[layer]]


def _small(kind: str, config: str | None = None, **more: Any) -> tuple[Any, dict[str, Any]]:
    """`small` with one head of keys, heads that are wider than their share, and weights small enough for embeddings that are scaled."""
    return small(kind, config, num_key_value_heads=1, head_dim=12, initializer_range=0.1, **more)


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma 3 of width 32, three layers of which look back over 6 tokens and turn by another base, and two prompts."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return _small("Gemma3", "Gemma3TextConfig", sliding_window=6, layer_types=kinds, query_pre_attn_scalar=12)


def tiny_one() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma of width 32, and two prompts."""
    return _small("Gemma")


def tiny_two() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma 2 of width 32 whose every second layer looks back over 6 tokens, and two prompts."""
    return _small("Gemma2", sliding_window=6, query_pre_attn_scalar=12, final_logit_softcapping=3.0, attn_implementation="eager")


FAMILY = Family(
    model_types=("gemma", "gemma2", "gemma3_text"),
    classes=("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(_embed, _rotary, window, norm="model.norm"),
    about="GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM",
    tiny=tiny,
)
