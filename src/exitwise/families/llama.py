"""Llama and what is built like it (SmolLM2, TinyLlama, Vicuna): pre-norm, rotary positions, grouped queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack


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


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Llama of width 32 with grouped queries, and one batch of two rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    return LlamaForCausalLM(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


FAMILY = Family(
    model_types=("llama",),
    classes=("LlamaForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",), owner="model"),),
    readout=_readout,
    language=Language(embed, rotary, norm="model.norm"),
    about="LlamaForCausalLM (SmolLM2, TinyLlama, Vicuna)",
    tiny=tiny,
)
