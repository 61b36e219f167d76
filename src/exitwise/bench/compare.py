"""Which of two ways is better: fronts of quality against cost, and paired differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, quality) points that no other point beats: none is as cheap and better, or as good and cheaper. By rising cost.

    >>> front([(1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (2.0, 0.4)])
    [0, 1]
    """
    kept: list[int] = []
    best = -np.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            kept.append(index)
            best = points[index][1]
    return kept


def best_at_cost(points: Sequence[tuple[float, float]], cost: float) -> int | None:
    """Index of the best point that costs at most `cost` (ties: the cheaper); None if all cost more.

    >>> best_at_cost([(1.0, 0.5), (2.0, 0.7), (3.0, 0.9)], 2.5)
    1
    """
    affordable = [i for i, (each, _) in enumerate(points) if each <= cost * (1 + 1e-9)]
    return max(affordable, key=lambda i: (points[i][1], -points[i][0])) if affordable else None


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0, draws: int = 2000) -> Interval:
    """Mean of `ours` over mean of `theirs`, items paired, percentile bootstrap over items. NaN where theirs is 0 throughout."""
    return _paired(ours, theirs, lambda a, b: np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0), seed, draws)


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0, draws: int = 2000) -> Interval:
    """Mean of `ours` minus mean of `theirs`, items paired, percentile bootstrap over items."""
    return _paired(ours, theirs, lambda a, b: a - b, seed, draws)


def _paired(ours: Sequence[float], theirs: Sequence[float], combine: Callable[[Floats, Floats], Floats], seed: int, draws: int) -> Interval:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired items are needed, got {a.shape} and {b.shape}")
    rows = np.random.default_rng(seed).integers(0, len(a), (draws, len(a)))
    drawn = combine(a[rows].mean(1), b[rows].mean(1))
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return Interval(float(combine(a.mean(keepdims=True), b.mean(keepdims=True))[0]), float(low), float(high))
