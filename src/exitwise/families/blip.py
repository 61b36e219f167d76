"""BLIP: an image encoder, for questions a text encoder that looks at the image, and a text decoder; captioning and question answering."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..stack import Family, Stack


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.text_decoder.cls(hidden)
    return logits


def _ends(model: Any) -> frozenset[int]:
    """BLIP's own `generate` ends at the separator, whatever the generation config says."""
    return frozenset({model.config.text_config.sep_token_id})


def _tiny(kind: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    text = transformers.BlipTextConfig(
        vocab_size=99, hidden_size=32, encoder_hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, bos_token_id=98,
        pad_token_id=0, eos_token_id=2, sep_token_id=3,
    )  # fmt: skip
    vision = transformers.BlipVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4, initializer_range=0.3
    )
    config = transformers.BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    model = getattr(transformers, kind)(config).eval()
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random captioning BLIP of 4 + 4 layers of width 32 on two images of 16x16."""
    return _tiny("BlipForConditionalGeneration")


def tiny_question() -> tuple[Any, dict[str, Any]]:
    """A random question-answering BLIP of 4 + 4 + 4 layers of width 32, two images and two questions, one padded."""
    import torch

    model, inputs = _tiny("BlipForQuestionAnswering")
    ids = torch.arange(14).view(2, 7) % 90 + 5
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return model, {**inputs, "input_ids": ids, "attention_mask": mask}


FAMILY = Family(
    model_types=("blip",),
    classes=("BlipForConditionalGeneration", "BlipForQuestionAnswering"),
    stacks=(
        Stack("vision_model.encoder.layers", "encoder", ("image",), owner="vision_model"),
        Stack("text_encoder.encoder.layer", "encoder", ("text",), owner="text_encoder"),
        Stack("text_decoder.bert.encoder.layer", "decoder", ("decoder",), owner="text_decoder.bert"),
    ),
    readout=_readout,
    about="BlipForConditionalGeneration, BlipForQuestionAnswering",
    tiny=tiny,
    head="text_decoder.cls",
    ends=_ends,
)
