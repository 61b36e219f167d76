"""Phi 3, 3.5 and 4 (mini): a decoder built as Llama is, with one weight for queries, keys and values, and windows in some sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts
from .llama import embed, rotary, window


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Phi 3 of width 32 that looks back over 6 tokens, and two prompts."""
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        initializer_range=0.3, max_position_embeddings=256, original_max_position_embeddings=256, sliding_window=6, bos_token_id=1,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return Phi3ForCausalLM(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("phi3",),
    classes=("Phi3ForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(embed, rotary, window, norm="model.norm"),
    about="Phi3ForCausalLM",
    tiny=tiny,
)
