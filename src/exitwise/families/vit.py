"""ViT: an image encoder, pre-norm, under a classifier on the first token of its normed last state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..stack import Family, Stack


def _stacks(model: nn.Module) -> tuple[Stack, ...]:
    """The layers lie in `vit.layers`; in transformers before 5.15, in `vit.encoder.layer`."""
    trunk = getattr(model, "vit", None)
    return (Stack("vit.layers" if hasattr(trunk, "layers") else "vit.encoder.layer", "encoder", ("image",), owner="vit"),)


def _readout(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.vit.layernorm(hidden)[:, 0])
    return logits


def tiny() -> tuple[Any, dict[str, Any]]:
    """A random 6-layer ViT of width 32 with 5 classes, on two images of 16x16."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, num_labels=5,
    )  # fmt: skip
    return ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 16, 16)}


FAMILY = Family(
    model_types=("vit",),
    classes=("ViTForImageClassification",),
    stacks=_stacks,
    readout=_readout,
    classifier="classifier",
    about="ViTForImageClassification",
    tiny=tiny,
)
