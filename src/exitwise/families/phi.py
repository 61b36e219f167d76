"""Phi 1, 1.5 and 2: a decoder that turns a part of each head by position, attention and feed-forward part side by side, biases everywhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts
from .llama import embed, rotary


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.final_layernorm(hidden))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Phi of width 32, and two prompts."""
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        initializer_range=0.3, max_position_embeddings=256, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return PhiForCausalLM(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("phi",),
    classes=("PhiForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(embed, rotary, norm="model.final_layernorm"),
    about="PhiForCausalLM",
    tiny=tiny,
)
