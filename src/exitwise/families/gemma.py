"""Gemma 1, 2 and 3 (text): a decoder with scaled embeddings and a tied head; from 2 on, layers that look back over a window between
those that see all, and logits that are capped softly (2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts
from .llama import window


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
    turn, kinds = model.model.rotary_emb, getattr(model.config, "layer_types", None)
    if model.config.model_type != "gemma3_text":
        aids = {"position_embeddings": turn(states, positions), "position_ids": positions}
        return lambda layer: aids
    made = {kind: {"position_embeddings": turn(states, positions, kind), "position_ids": positions} for kind in set(kinds)}
    return lambda layer: made[kinds[layer]]


def _tiny(kind: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    import transformers

    config = getattr(transformers, f"{kind}Config" if kind != "Gemma3" else "Gemma3TextConfig")(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=12, intermediate_size=64,
        initializer_range=0.1, max_position_embeddings=256, bos_token_id=1, eos_token_id=None, pad_token_id=0, **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval(), two_prompts()


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma 3 of width 32, three layers of which look back over 6 tokens and turn by another base, and two prompts."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return _tiny("Gemma3", sliding_window=6, layer_types=kinds, query_pre_attn_scalar=12)


def tiny_one() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma of width 32, and two prompts."""
    return _tiny("Gemma")


def tiny_two() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma 2 of width 32 whose every second layer looks back over 6 tokens, and two prompts."""
    return _tiny("Gemma2", sliding_window=6, query_pre_attn_scalar=12, final_logit_softcapping=3.0, attn_implementation="eager")


FAMILY = Family(
    model_types=("gemma", "gemma2", "gemma3_text"),
    classes=("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(_embed, _rotary, window, norm="model.norm"),
    about="GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM",
    tiny=tiny,
)
