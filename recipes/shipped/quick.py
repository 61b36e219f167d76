"""Two plain replacements of torch functions that make a training step on a CPU about a tenth faster; training only, never inference."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout from random bytes, which are cheaper than Bernoulli draws; p is rounded down to 256ths and the scale is exact for it."""
    del inplace
    share = int(p * 256)
    if not training or share == 0:
        return input
    keep = torch.randint(0, 256, input.shape, dtype=torch.uint8, device=input.device) >= share
    return input * (keep.to(input.dtype) * (256 / (256 - share)))


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float, scale: float, **_: Any) -> Tensor:
    """Attention written out: where the bias needs a gradient, torch's own path on a CPU checks every row for emptiness."""
    del dropout_p  # the model has no dropout on attention
    return ((query * scale) @ key.transpose(-1, -2) + attn_mask).softmax(-1) @ value


def install() -> None:
    """Puts both in place for the rest of this process."""
    F.dropout = dropout
    F.scaled_dot_product_attention = attention
