"""Where a token stands, as scores between tokens: TUPE's decoupled positions and per-layer relative tables.

Ke et al. 2020 (arXiv:2006.15595): score = (content q . k + position q . k) / sqrt(2 head_dim) + relative table[bucket].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def unread(dtype: torch.dtype) -> float:
    """The bias of what is not to be read: half the least number, so that sums and lower precisions stay finite."""
    return torch.finfo(dtype).min / 2


def token_buckets(queries: Tensor, keys: Tensor, buckets: int, longest: int) -> Tensor:
    """Bucket of each key as seen from each query, (queries, keys), in 0..2 * buckets - 2.

    Distances up to buckets / 2 have their own bucket, longer ones share logarithmic ones up to the distance `longest`.
    """
    distance = keys[None, :] - queries[:, None]
    middle = buckets // 2
    if longest <= middle:
        return distance + (buckets - 1)
    far = distance.abs().clamp(min=middle).float() / middle
    shared = (far.log() / math.log(max(longest - 1, middle + 1) / middle) * (middle - 1)).ceil().long() + middle
    shared = shared.clamp(max=buckets - 1) * distance.sign()
    return torch.where(distance.abs() <= middle, distance, shared) + (buckets - 1)


def image_positions(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each cell of the grid in reading order, each (rows * columns,)."""
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    return row, column


def image_buckets(row: Tensor, column: Tensor, size: int) -> Tensor:
    """Bucket of each cell as seen from each cell, (cells, cells), in 0..(2 * size - 1) ** 2 - 1."""
    down = row[None, :] - row[:, None] + size - 1
    across = column[None, :] - column[:, None] + size - 1
    return down * (2 * size - 1) + across


class PositionScores(nn.Module):
    """Position queries and keys of one attention, turned into scores already divided by sqrt(2 head_dim)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (2 * width // heads) ** -0.5
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(T, d) and (S, d) position embeddings after their norm -> (heads, T, S)."""
        query = self.q_linear(queries).view(queries.shape[0], self.heads, -1).transpose(0, 1) * self.scale
        key = self.k_linear(keys).view(keys.shape[0], self.heads, -1).permute(1, 2, 0)
        return query @ key
