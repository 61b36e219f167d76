"""T5 and mT5: a text encoder and a decoder, pre-norm, whose first layer makes the relative position bias that the deeper layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..stack import Cross, Family, Language, Stack


def _readout(model: Any, hidden: Tensor) -> Tensor:
    state = model.decoder.final_layer_norm(hidden)
    tied = model.config.model_type == "t5" and model.config.tie_word_embeddings  # what decided before transformers had a field for it
    if getattr(model.config, "scale_decoder_outputs", tied):
        state = state * model.model_dim**-0.5
    logits: Tensor = model.lm_head(state)
    return logits


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    states: Tensor = model.decoder.embed_tokens(ids)
    return states


def _bias(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    """The first layer's relative position bias, for all layers: (rows or 1, heads, tokens, slots)."""
    attn = model.decoder.block[0].layer[0].SelfAttention
    slots = torch.arange(int(positions.max()) + 1, device=positions.device)
    buckets = attn._relative_position_bucket(
        slots - positions[:, :, None], False, attn.relative_attention_num_buckets, attn.relative_attention_max_distance
    )
    aids = {"position_bias": attn.relative_attention_bias(buckets).permute(0, 3, 1, 2)}
    return lambda layer: aids


def _keys(model: Any, layer: int, source: Tensor) -> tuple[Tensor, Tensor]:
    attn = model.decoder.block[layer].layer[1].EncDecAttention
    shape = (*source.shape[:2], -1, attn.key_value_proj_dim)
    return attn.k(source).view(shape).transpose(1, 2), attn.v(source).view(shape).transpose(1, 2)


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4+4-layer T5 of width 32, and one batch with padding."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=4, num_decoder_layers=4, num_heads=4, dropout_rate=0.0,
        initializer_factor=1.0, relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for block in (*model.encoder.block, *model.decoder.block):
            block.layer[-1].DenseReluDense.wo.weight.mul_(4)
    ids = torch.arange(24).view(2, 12) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 0, 0
    return model, {"input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("t5", "mt5"),
    classes=("T5ForConditionalGeneration", "MT5ForConditionalGeneration"),
    stacks=(
        Stack("encoder.block", "encoder", ("text",)),
        Stack("decoder.block", "decoder", ("decoder",), fresh_bias=True),
    ),
    readout=_readout,
    language=Language(_embed, _bias, cross=Cross(_keys)),
    about="T5ForConditionalGeneration, MT5ForConditionalGeneration",
    tiny=tiny,
)
