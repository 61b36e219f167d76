"""Llama, and what is built like it (SmolLM2, TinyLlama): a decoder with rotary positions and grouped keys, a final norm before the head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Llama of width 32 with two heads of keys for four of queries, tied as SmolLM2 is, and two prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        initializer_range=0.3, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("llama",),
    classes=("LlamaForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    about="LlamaForCausalLM",
    tiny=tiny,
)
