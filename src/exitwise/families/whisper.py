"""Whisper: an audio encoder and a text decoder, pre-norm, a final norm before the tied head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..stack import Cross, Family, Language, Stack


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.proj_out(model.model.decoder.layer_norm(hidden))
    return logits


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    body = model.model.decoder
    states: Tensor = body.embed_tokens(ids) + body.embed_positions.weight[positions]
    return states


def nothing(model: Any, states: Tensor, positions: Tensor) -> Callable[[int], dict[str, Any]]:
    """Layers need nothing but states and masks."""
    return lambda layer: {}


def seen(attn: Any, source: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention of the kind that BART and Whisper share sees of the encoder's states."""
    shape = (*source.shape[:2], -1, attn.head_dim)
    return attn.k_proj(source).view(shape).transpose(1, 2), attn.v_proj(source).view(shape).transpose(1, 2)


def _keys(model: Any, layer: int, source: Tensor) -> tuple[Tensor, Tensor]:
    return seen(model.model.decoder.layers[layer].encoder_attn, source)


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4+4-layer Whisper of width 32 on two recordings of 24 frames."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=12, max_target_positions=64, dropout=0.0, init_std=0.3,
        decoder_start_token_id=3, pad_token_id=1, bos_token_id=0, eos_token_id=2, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    return model, {"input_features": torch.randn(2, 8, 24)}


FAMILY = Family(
    model_types=("whisper",),
    classes=("WhisperForConditionalGeneration",),
    stacks=(Stack("model.encoder.layers", "encoder", ("audio",)), Stack("model.decoder.layers", "decoder", ("decoder",))),
    readout=_readout,
    language=Language(_embed, nothing, norm="model.decoder.layer_norm", cross=Cross(_keys, masked=False)),
    about="WhisperForConditionalGeneration",
    tiny=tiny,
)
