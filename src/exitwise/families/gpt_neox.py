"""GPT-NeoX (Pythia): a decoder that turns a part of each head by position, attention and feed-forward part side by side, head untied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_output_embeddings()(model.gpt_neox.final_layer_norm(hidden))  # its name changed with the library
    return logits


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    states: Tensor = model.gpt_neox.emb_dropout(model.gpt_neox.embed_in(ids))
    return states


def _rotary(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    aids = {"position_embeddings": model.gpt_neox.rotary_emb(states, positions), "position_ids": positions}
    return lambda layer: aids


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer GPT-NeoX of width 32, and two prompts."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, max_position_embeddings=256,
        initializer_range=0.3, hidden_dropout=0.0, attention_dropout=0.0, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("gpt_neox",),
    classes=("GPTNeoXForCausalLM",),
    stacks=(Stack("gpt_neox.layers", "decoder", ("decoder",), cache="layer_past"),),
    readout=_readout,
    language=Language(_embed, _rotary, norm="gpt_neox.final_layer_norm"),
    about="GPTNeoXForCausalLM",
    tiny=tiny,
)
