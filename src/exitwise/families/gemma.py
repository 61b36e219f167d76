"""Gemma 1, 2 and 3 (text): a decoder with scaled embeddings and a tied head; from 2 on, layers that look back over a window between
those that see all, and logits that are capped softly (2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    """Capped as the model caps them: the largest answer stays the largest, but how sure it looks does not stay."""
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap


def _tiny(kind: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    import transformers

    config = getattr(transformers, f"{kind}Config" if kind != "Gemma3" else "Gemma3TextConfig")(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=12, intermediate_size=64,
        initializer_range=0.1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval(), two_prompts()


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma 3 of width 32, three layers of which look back over 6 tokens and turn by another base, and two prompts."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return _tiny("Gemma3", sliding_window=6, layer_types=kinds, query_pre_attn_scalar=12)


def tiny_one() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma of width 32, and two prompts."""
    return _tiny("Gemma")


def tiny_two() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer Gemma 2 of width 32 whose every second layer looks back over 6 tokens, and two prompts."""
    return _tiny("Gemma2", sliding_window=6, query_pre_attn_scalar=12, final_logit_softcapping=3.0, attn_implementation="eager")


FAMILY = Family(
    model_types=("gemma", "gemma2", "gemma3_text"),
    classes=("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
    stacks=(Stack("model.layers", "decoder", ("decoder",)),),
    readout=_readout,
    about="GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM",
    tiny=tiny,
)
