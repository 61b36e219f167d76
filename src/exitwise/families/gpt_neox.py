"""GPT-NeoX (Pythia): a decoder that turns a part of each head by position, attention and feed-forward part side by side, head untied."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.embed_out(model.gpt_neox.final_layer_norm(hidden))
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer GPT-NeoX of width 32, and two prompts."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64,
        initializer_range=0.3, hidden_dropout=0.0, attention_dropout=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("gpt_neox",),
    classes=("GPTNeoXForCausalLM",),
    stacks=(Stack("gpt_neox.layers", "decoder", ("decoder",), cache="layer_past"),),
    readout=_readout,
    about="GPTNeoXForCausalLM",
    tiny=tiny,
)
