"""How long a whole front takes: 20,000 settings of a ledger of 10,000 rows, without a run of any model.

Two shapes: one stack of 12 exits under 20,000 thresholds; and a unified model, whose decoder of 12 exits is recorded for each of 36 pairs
of encoder depths, under a grid of thresholds for its three streams. The slower one counts. Time depends on the sizes, not on the values.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch

from ..calibrate.front import front
from ..calibrate.ledger import DECODER, Ledger, grid, thresholds_of
from ..calibrate.prices import Prices

SHAPES: dict[str, tuple[dict[str, int], int, int]] = {  # encoder's streams, points of their grid, points of the decoder's
    "one stack": ({}, 1, 19_999),
    "three streams": ({"image": 6, "text": 6}, 14, 88),
}


def noise(rows: int, streams: dict[str, int], exits: int, seed: int = 0) -> Ledger:
    """A ledger of random similarities that rise with depth, and of answers that are the likelier right the deeper."""
    dice = torch.Generator().manual_seed(seed)
    shape = (*streams.values(), rows, exits)
    rising = torch.linspace(0, 1, exits)
    sims = {s: torch.rand(rows, n, generator=dice) + torch.linspace(0, 1, n) for s, n in streams.items()}
    decoder = (torch.rand(shape, generator=dice) + rising) / 2
    right = torch.rand(shape, generator=dice) < 0.5 + rising / 3
    return Ledger(tuple(streams), {**streams, DECODER: exits}, {s: v / 2 for s, v in sims.items()}, decoder, right)


def seconds(rows: int = 10_000, exits: int = 12, repeats: int = 5) -> dict[str, dict[str, Any]]:
    """Shape -> settings, points on the front, seconds of each repeat and their median; thresholds and front included, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: _timed(noise(rows, shape[0], exits), *shape[1:], repeats) for name, shape in SHAPES.items()}
    finally:
        torch.set_num_threads(before)


def _timed(book: Ledger, encoder: int, decoder: int, repeats: int) -> dict[str, Any]:
    prices, times, points = Prices.of_layers(book.layers, [DECODER]), [], 0
    for _ in range(repeats):
        start = time.perf_counter()
        points = len(front(book, prices, encoder, decoder))
        times.append(time.perf_counter() - start)
    settings = math.prod((len(grid(book, encoder)), len(thresholds_of(book.decoder, book.layers[DECODER], decoder))))
    return {"settings": settings, "front": points, "median_s": statistics.median(times), "times_s": times}
