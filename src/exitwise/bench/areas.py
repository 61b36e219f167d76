"""Fronts of methods on common axes: the area under each over a stated common range of cost, and whether two areas differ, items paired.

A front is a list of settings, chosen elsewhere, with what each judged item got and paid under each. Between two settings quality runs
straight: whoever uses the one for some items and the other for the rest gets what lies between. Full depth, at cost 1, ends every front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exitwise.errors import InputError

from .compare import Interval

Floats = NDArray[np.float64]
STEPS = 200  # of the range of cost, for the area
NARROW = 0.02  # of full depth's cost: a common range that is narrower says nothing


@dataclass(frozen=True)
class Front:
    """marks: (settings, items) quality. paid, whole: (settings, items) what an item paid, and what it would have at full depth.

    A setting's cost is the sum of `paid` over that of `whole`, so that an item of many words weighs more, as in MuE's ETR.
    """

    marks: Floats
    paid: Floats
    whole: Floats

    @staticmethod
    def of(marks: Any, paid: Any, whole: Any, full: Sequence[float]) -> Front:
        """From plain lists; full: full depth's marks, which end the front at cost 1. Raises InputError for items that are not the same."""
        made = [np.asarray(each, np.float64).reshape(-1, len(full)) for each in (marks, paid, whole)]
        if len({each.shape for each in made}) > 1:
            raise InputError(f"a front needs the same items under all settings, got {[each.shape for each in made]}.")
        ones = np.ones((1, len(full)))
        return Front(np.vstack([made[0], np.asarray(full, np.float64)[None]]), np.vstack([made[1], ones]), np.vstack([made[2], ones]))

    def cost(self, weights: Floats | None = None) -> Floats:
        """(draws, settings) share of full depth's cost; weights: (draws, items), one draw of all items by default."""
        weights = np.ones((1, self.marks.shape[1])) if weights is None else weights
        return np.asarray((weights @ self.paid.T) / (weights @ self.whole.T))

    def quality(self, weights: Floats | None = None) -> Floats:
        """(draws, settings) mean quality."""
        weights = np.ones((1, self.marks.shape[1])) if weights is None else weights
        return np.asarray((weights @ self.marks.T) / weights.sum(1, keepdims=True))

    def area(self, low: float, high: float, weights: Floats | None = None) -> Floats:
        """(draws,) mean quality over the costs low..high, in units of the marks; below its cheapest setting, that setting's."""
        grid = np.linspace(low, high, STEPS + 1)
        out = []
        for cost, quality in zip(self.cost(weights), self.quality(weights), strict=True):
            order = np.argsort(cost, kind="stable")
            out.append(float(np.trapezoid(np.interp(grid, cost[order], quality[order]), grid) / (high - low)))
        return np.asarray(out)


def common(fronts: Mapping[str, Front]) -> tuple[float, float] | None:
    """The costs that all fronts reach, up to full depth's; None where that is next to nothing. A front without a setting is passed over."""
    cheapest = [float(front.cost()[0].min()) for front in fronts.values() if len(front.marks) > 1]
    low = max(cheapest, default=1.0)
    return (low, 1.0) if low <= 1 - NARROW else None


def drawn(items: int, draws: int, seed: int) -> Floats:
    """(draws, items) how often each item is in each bootstrap sample."""
    dice = np.random.default_rng(seed)
    return np.asarray(dice.multinomial(items, np.full(items, 1 / items), draws), np.float64)


def compared(fronts: Mapping[str, Front], seed: int = 0, draws: int = 1000) -> dict[str, Any]:
    """The areas as shares of full depth's quality, and their differences, each with its 95 % interval; the same samples for all.

    range: the common range of cost (None: there is none, and no areas). areas: name -> interval. pairs: (better, worse, difference), the
    better by its area first. Fronts without a setting of their own have no area.
    """
    able = {name: front for name, front in fronts.items() if len(front.marks) > 1}
    span = common(able)
    if span is None:
        return {"range": None, "areas": {}, "pairs": []}
    weights = drawn(next(iter(able.values())).marks.shape[1], draws, seed)
    full = next(iter(able.values()))
    unit, units = full.quality()[0][-1], full.quality(weights)[:, -1]
    if unit <= 0:
        return {"range": list(span), "areas": {}, "pairs": []}
    value = {name: float(front.area(*span)[0] / unit) for name, front in able.items()}
    sample = {name: front.area(*span, weights) / np.where(units > 0, units, np.nan) for name, front in able.items()}
    order = sorted(able, key=lambda name: -value[name])
    pairs = [
        {"better": a, "worse": b, **_interval(value[a] - value[b], sample[a] - sample[b])}
        for place, a in enumerate(order)
        for b in order[place + 1 :]
    ]
    return {"range": list(span), "areas": {name: _interval(value[name], sample[name]) for name in order}, "pairs": pairs}


def _interval(value: float, sample: Floats) -> dict[str, float]:
    low, high = np.nanpercentile(sample, [2.5, 97.5])
    return Interval(value, float(low), float(high)).to_dict()


def gain(found: Mapping[str, Any], ours: str, rivals: Sequence[str]) -> dict[str, Any] | None:
    """Our area minus that of the rival with the greatest, with its interval; None where there is nothing to compare."""
    areas = found["areas"]
    best = max((name for name in rivals if name in areas), key=lambda name: areas[name]["value"], default=None)
    if best is None or ours not in areas:
        return None
    for pair in found["pairs"]:
        if (pair["better"], pair["worse"]) == (ours, best):
            return {"rival": best, **{key: pair[key] for key in ("value", "low", "high")}}
        if (pair["better"], pair["worse"]) == (best, ours):
            return {"rival": best, "value": -pair["value"], "low": -pair["high"], "high": -pair["low"]}
    return None
