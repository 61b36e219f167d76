"""OPT: a decoder with learnt positions; what stands between its last layer and the tied head differs from size to size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    body = model.model.decoder
    for part in (body.final_layer_norm, body.project_out):
        hidden = hidden if part is None else part(hidden)
    logits: Tensor = model.lm_head(hidden)
    return logits


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Tokens, widened where words are narrower than states, and their learnt positions, which begin at 2 in the table."""
    body = model.model.decoder
    words = body.embed_tokens(ids)
    places = body.embed_positions.weight[positions + body.embed_positions.offset]
    states: Tensor = (words if body.project_in is None else body.project_in(words)) + places
    return states


def _aids(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    return lambda layer: {}


def _tiny(**more: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=64, max_position_embeddings=256, init_std=0.3,
        dropout=0.0, bos_token_id=1, eos_token_id=None, pad_token_id=0, **more,
    )  # fmt: skip
    return OPTForCausalLM(config).eval(), two_prompts()


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer OPT of width 32, pre-norm as all sizes but one, and two prompts."""
    return _tiny(word_embed_proj_dim=32)


def tiny_projected() -> tuple[Any, dict[str, Any]]:
    """The same built as OPT-350M is: post-norm, without a final norm, its states projected to narrower words."""
    return _tiny(word_embed_proj_dim=24, do_layer_norm_before=False)


FAMILY = Family(
    model_types=("opt",),
    classes=("OPTForCausalLM",),
    stacks=(Stack("model.decoder.layers", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(_embed, _aids, norm="model.decoder.final_layer_norm"),
    about="OPTForCausalLM",
    tiny=tiny,
)
