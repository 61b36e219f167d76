"""A path down a grid of thresholds, from full depth to the cheapest, of settings that are to be tested one after the other.

The best of thousands of settings at each loss are mostly lucky ones: one of them fails, and what is cheaper is never tested. So a loss is
averaged with those of the neighbours, and each setting of the path lowers one threshold of the setting before.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .bounds import Floats

Place = tuple[int, ...]  # one index for each threshold, from the lowest up


def smoothed(loss: Floats) -> Floats:
    """The mean of each setting and its neighbours, 3 along each axis; at an edge the setting itself stands for the one that is missing."""
    for axis in range(loss.ndim):
        wide = np.pad(loss, [(int(axis == k),) * 2 for k in range(loss.ndim)], mode="edge")
        loss = sliding_window_view(wide, 3, axis=axis).mean(-1)
    return loss


def descent(loss: Floats, cost: Floats, least: float) -> list[Place]:
    """Places from the highest thresholds down, each cheaper than the one before, by steps of the greatest saving for each loss added.

    loss, cost: an axis for each threshold, thresholds rising. A step lowers one threshold as far as it likes; places on its way that lose
    no more than its end are visited too, so that where the end fails something near it has passed. least, above 0: counted as added by
    every step, so that one which seems to lose nothing is not taken for free.
    """
    path = [tuple(n - 1 for n in loss.shape)]
    while cheaper := [place for place in _below(path[-1]) if cost[place] < cost[path[-1]]]:
        here = path[-1]
        there = max(cheaper, key=lambda place: (cost[here] - cost[place]) / (max(loss[place] - loss[here], 0) + least))
        path += _stairs(here, there, loss, cost)
    return path


def _stairs(here: Place, there: Place, loss: Floats, cost: Floats) -> list[Place]:
    """From `here`, left out, to `there`: each cheaper than the one before, dearer than the end, and of no more loss than the end."""
    between, price = [], cost[here]
    for place in reversed(_below(here)):
        if all(t <= p for t, p in zip(there, place, strict=True)) and cost[there] < cost[place] < price and loss[place] <= loss[there]:
            between.append(place)
            price = cost[place]
    return [*between, there]


def _below(place: Place) -> list[Place]:
    """All places that have one index lower."""
    return [(*place[:axis], lower, *place[axis + 1 :]) for axis, index in enumerate(place) for lower in range(index)]
