"""Llama, and what is built like it (SmolLM2, TinyLlama): a decoder with rotary positions and grouped keys, a final norm before the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Tokens alone: positions turn queries and keys later."""
    states: Tensor = model.model.embed_tokens(ids)
    return states


def rotary(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    """One pair of rotary tables for all layers."""
    aids = {"position_embeddings": model.model.rotary_emb(states, positions), "position_ids": positions}
    return lambda layer: aids


def window(model: Any, layer: int) -> int | None:
    """How far a layer of a family with sliding windows looks back; None: all the way."""
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    span: int | None = getattr(model.config, "sliding_window", None)
    return span


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Llama of width 32 with two heads of keys for four of queries, tied as SmolLM2 is, and two prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        initializer_range=0.3, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("llama",),
    classes=("LlamaForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(embed, rotary, norm="model.norm"),
    about="LlamaForCausalLM",
    tiny=tiny,
)
