"""OFA, the unified model in `exitwise.models.ofa`: image tokens, then text tokens, through one encoder; a decoder of NormFormer blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..stack import Cross, Family, Language, Spans, Stack
from .whisper import nothing


def spans(model: Any, tokens: int, given: Mapping[str, Any]) -> Spans:
    """The text's tokens are the last ones; what comes before them is the image."""
    ids = given.get("input_ids")
    text = 0 if ids is None else ids.shape[1]
    return {"image": (0, tokens - text), "text": (tokens - text, tokens)}


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 4+4-layer OFA of width 32 on features of a 2x3 grid, and one batch with padding."""
    import torch

    from ..models.ofa import OFAConfig, OFAForConditionalGeneration

    config = OFAConfig(
        vocab_size=99, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=64, image_bucket_size=8, image_grids=[[2, 3]], stem="efficientnet-lite0",
        decomposed=True, dropout=0.0,
    )  # fmt: skip
    model = OFAForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in (*model.model.encoder.layers.parameters(), *model.model.decoder.layers.parameters()):
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    ids = torch.arange(14).view(2, 7) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 1, 0
    return model, {"input_ids": ids, "attention_mask": mask, "image_features": torch.randn(2, 2, 3, 320)}


def readout(model: Any, hidden: Tensor) -> Tensor:
    """Shared final norm and tied head."""
    logits: Tensor = model.readout(hidden)
    return logits


def _embed(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Tokens alone: positions are in the biases of the layers."""
    states: Tensor = model.model.decoder.embed(ids)
    return states


def _keys(model: Any, layer: int, source: Tensor) -> tuple[Tensor, Tensor]:
    pair: tuple[Tensor, Tensor] = model.model.decoder.layers[layer].cross_attn.keys_values(source)
    return pair


def _biases(model: Any, source: Any, positions: Tensor, rows: Tensor | None) -> Callable[[int], dict[str, Any]]:
    """Both biases of every layer, causal mask and padding in them; their tables are kept on the source until they are full."""
    decoder, end = model.model.decoder, int(positions.max()) + 1
    tables = decoder.tables(int(positions.min()), end, source.given.position_embeddings[0], source)
    cross = tables.cross[0][:, positions].transpose(0, 1)
    hidden = source.bias(rows)
    cross = cross if hidden is None else cross + hidden

    def of(layer: int) -> dict[str, Any]:
        own = tables.self_bias(layer, decoder.token_rel_pos[layer].weight)[0]
        bias = own[:, positions, :end].transpose(0, 1)
        return {"attention_bias": bias, "encoder_hidden_states": source.states, "cross_bias": cross}

    return of


FAMILY = Family(
    model_types=("ofa",),
    classes=("OFAForConditionalGeneration",),
    stacks=(
        Stack("model.encoder.layers", "encoder", ("image", "text"), spans=spans),
        Stack("model.decoder.layers", "decoder", ("decoder",), cross=("encoder_hidden_states", "cross_bias")),
    ),
    readout=readout,
    language=Language(_embed, nothing, norm="model.decoder.layer_norm", cross=Cross(_keys, _biases)),
    about="OFAForConditionalGeneration, the built-in unified model",
    tiny=tiny,
)
