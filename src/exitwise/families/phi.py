"""Phi 1, 1.5, 2 (attention and feed-forward part side by side) and Phi 3, 3.5, 4 mini: decoders that turn a part of each head by position."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    body = model.model
    logits: Tensor = model.lm_head((body.final_layernorm if hasattr(body, "final_layernorm") else body.norm)(hidden))
    return logits


def _tiny(kind: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        initializer_range=0.3, max_position_embeddings=64, partial_rotary_factor=0.5, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval(), two_prompts()


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Phi of width 32, and two prompts."""
    return _tiny("Phi")


def tiny_three() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Phi 3 of width 32 that looks back over 6 tokens, and two prompts."""
    return _tiny("Phi3", sliding_window=6)


FAMILY = Family(
    model_types=("phi", "phi3"),
    classes=("PhiForCausalLM", "Phi3ForCausalLM"),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    about="PhiForCausalLM, Phi3ForCausalLM",
    tiny=tiny,
)
