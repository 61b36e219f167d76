"""Qwen 2 and 3: a decoder with rotary positions; biases on queries, keys and values (2), or norms of queries and keys (3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts
from .llama import embed, rotary, window


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def _tiny(kind: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        initializer_range=0.3, max_position_embeddings=256, bos_token_id=1, eos_token_id=None, pad_token_id=0, **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval(), two_prompts()


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Qwen 2 of width 32 whose deeper two layers look back over 6 tokens only, and two prompts."""
    return _tiny("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=2)


def tiny_three() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Qwen 3 of width 32 with heads of width 12, and two prompts."""
    return _tiny("Qwen3", head_dim=12)


FAMILY = Family(
    model_types=("qwen2", "qwen3"),
    classes=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(embed, rotary, window, norm="model.norm"),
    about="Qwen2ForCausalLM, Qwen3ForCausalLM",
    tiny=tiny,
)
