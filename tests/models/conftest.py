"""A tiny OFA with random weights, loud enough that every part of it matters, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration


def make_tiny(seed: int = 4, **changes: Any) -> OFAForConditionalGeneration:
    """3+3 layers of width 32. Weights are scaled up and the relative tables filled: at their start they would be silent."""
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 80,
        "token_bucket_size": 8,
        "image_bucket_size": 6,
        "stem": "efficientnet-lite0",
        "image_grids": [[2, 3], [3, 2]],
    }
    torch.manual_seed(seed)
    model = OFAForConditionalGeneration(OFAConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "stem" in name:
                continue
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * (0.3 if name.endswith("c_attn") else 0.1))
            elif "rel_pos" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
            else:
                weight.mul_(20.0 if "decoder" in name else 10.0)
            if "decoder" in name and "mid_layer_norm.weight" in name:
                weight.mul_(3.0)  # louder than the embedding, or the tied head would only echo the last token
    return model


def make_inputs(rows: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    """Grids of 2 x 3 cells and texts of 7 tokens, of which the last row has three pads."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    ids[-1, 4:], mask[-1, 4:] = 1, 0
    features = torch.randn(rows, 2, 3, 320, generator=generator)
    return {"input_ids": ids, "image_features": features, "attention_mask": mask}


@pytest.fixture
def tiny_ofa() -> Callable[..., OFAForConditionalGeneration]:
    return make_tiny


@pytest.fixture
def ofa_inputs() -> Callable[..., dict[str, torch.Tensor]]:
    return make_inputs
