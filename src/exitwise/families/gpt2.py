"""GPT-2: a decoder with learnt positions, a final norm and a tied head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Family, Language, Stack
from . import two_prompts


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.transformer.ln_f(hidden))
    return logits


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Tokens and their learnt positions."""
    body = model.transformer
    states: Tensor = body.drop(body.wte(ids) + body.wpe(positions))
    return states


def _aids(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    return lambda layer: {}


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4-layer GPT-2 of width 32, and two prompts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=99, n_embd=32, n_layer=4, n_head=4, n_positions=256, initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval(), two_prompts()


FAMILY = Family(
    model_types=("gpt2",),
    classes=("GPT2LMHeadModel",),
    stacks=(Stack("transformer.h", "decoder", ("decoder",)),),
    readout=_readout,
    language=Language(_embed, _aids, norm="transformer.ln_f"),
    about="GPT2LMHeadModel",
    tiny=tiny,
)
