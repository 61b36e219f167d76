"""Llama, and what is built like it (SmolLM2, TinyLlama): a decoder with rotary positions and grouped keys, a final norm before the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts


def readout(model: Any, hidden: Tensor) -> Tensor:
    """The final norm, then the head."""
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


def small(kind: str, config: str | None = None, model: str | None = None, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A random 4-layer model of width 32 of a kind ('Llama') that takes Llama's names in its configuration, and two prompts.

    config, model: their classes, where they are not the kind's name with 'Config' and 'ForCausalLM'; more: fields of the configuration.
    """
    import transformers

    usual = {
        "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "initializer_range": 0.3, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": None,
        "pad_token_id": 0,
    }  # fmt: skip
    made = getattr(transformers, config or f"{kind}Config")(**{**usual, **more})
    return getattr(transformers, model or f"{kind}ForCausalLM")(made).eval(), two_prompts()


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Llama of width 32 with two heads of keys for four of queries, tied as SmolLM2 is, and two prompts."""
    return small("Llama", tie_word_embeddings=True)


FAMILY = Family(
    model_types=("llama",),
    classes=("LlamaForCausalLM",),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=readout,
    language=Language(embed, rotary, norm="model.norm"),
    about="LlamaForCausalLM",
    tiny=tiny,
)
