"""Florence-2: image tokens, then the prompt's tokens, through one BART encoder; a BART decoder, no final norm before the tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import FamilyError
from ..stack import Family, Spans, Stack
from .bart import language

_EMBEDDING = "model.language_model.shared"


def spans(model: Any, tokens: int, given: Mapping[str, Any]) -> Spans:
    """The image's tokens come first, as many as the prompt holds placeholders. Raises FamilyError where they lie anywhere else.

    The positions were added before the first layer, so that a stream that walks alone keeps those it had in the joint sequence.
    """
    heard = given.get(_EMBEDDING)
    ids = heard[0] if heard else None
    if not isinstance(ids, Tensor) or ids.shape[1] != tokens:
        raise FamilyError("Image and text can walk apart only where their tokens are known. Pass `input_ids`, not `inputs_embeds`.")
    placed = ids == model.config.image_token_id
    count = int(placed[0].sum())
    if not bool((placed.sum(1) == count).all() & placed[:, :count].all()):
        raise FamilyError(
            "The image's tokens are not the first ones in every row, so the streams cannot walk apart. "
            "Pad on the right (`processor.tokenizer.padding_side = 'right'`), or use decompose=False."
        )
    return {"image": (0, count), "text": (count, tokens)}


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(hidden)
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random Florence-2 with a 4+4-layer BART of width 32: two images of 5 tokens each with their prompts, one padded."""
    import torch
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2VisionConfig

    text = BartConfig(
        vocab_size=99, d_model=32, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0, init_std=0.3, forced_eos_token_id=None,
    )  # fmt: skip
    vision = Florence2VisionConfig(
        depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1), patch_prenorm=(False, True), embed_dim=(16, 32),
        num_heads=(2, 4), num_groups=(2, 4), window_size=4, projection_dim=32, drop_path_rate=0.0, max_position_embeddings=8,
        initializer_range=0.3,
    )  # fmt: skip
    config = Florence2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_id=98)
    model = Florence2ForConditionalGeneration(config).eval()
    ids = torch.arange(24).view(2, 12) % 90 + 5
    ids[:, :5] = 98
    mask = torch.ones_like(ids)
    ids[1, 9:], mask[1, 9:] = 1, 0
    return model, {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 16, 16)}


FAMILY = Family(
    model_types=("florence2",),
    classes=("Florence2ForConditionalGeneration",),
    stacks=(
        Stack("model.language_model.encoder.layers", "encoder", ("image", "text"), spans=spans, listen=(_EMBEDDING,)),
        Stack("model.language_model.decoder.layers", "decoder", ("decoder",)),
    ),
    readout=_readout,
    language=language("model.language_model.decoder"),
    about="Florence2ForConditionalGeneration",
    tiny=tiny,
)
