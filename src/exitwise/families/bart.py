"""BART: a text encoder and a decoder, post-LN, no final norm before the tied head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Cross, Family, Language, Stack, reach
from .whisper import nothing, seen


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(hidden)
    return logits + model.final_logits_bias.to(logits.device)


def language(path: str) -> Language:
    """A BART decoder at a dotted path: learnt positions that begin at 2 in their table, and a norm before the first layer."""

    def embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
        body = reach(model, path)
        places = body.embed_positions.weight[positions + body.embed_positions.offset]
        states: Tensor = body.layernorm_embedding(body.embed_tokens(ids) + places)
        return states

    def keys(model: Any, layer: int, source: Tensor) -> tuple[Tensor, Tensor]:
        return seen(reach(model, path).layers[layer].encoder_attn, source)

    return Language(embed, nothing, cross=Cross(keys))


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4+4-layer BART of width 32, and one batch with padding."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=99, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0, init_std=0.3, forced_eos_token_id=None,
    )  # fmt: skip
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 1, 0
    return BartForConditionalGeneration(config).eval(), {"input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("bart",),
    classes=("BartForConditionalGeneration",),
    stacks=(Stack("model.encoder.layers", "encoder", ("text",)), Stack("model.decoder.layers", "decoder", ("decoder",))),
    readout=_readout,
    language=language("model.decoder"),
    about="BartForConditionalGeneration",
    tiny=tiny,
)
