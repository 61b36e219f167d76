"""The best quality at a mean cost, and the whole front of quality against cost: from a ledger without a run, or from a few live runs.

Cost is a share of full depth's, in the unit of the prices. What is best here is best on these rows, and a little lucky: judge it on others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..cost import etr
from ..errors import CalibrationError
from ..trace import Trace
from .budget import NEVER, Calibration, Outcome, Quality, depths_at, enough, judged, marks_of, proposals
from .ledger import DECODER, Ledger, grid, thresholds_of
from .prices import Prices, ran_layers
from .replay import Floats, replay

FINE = 15  # thresholds of a stream whose combinations are thought of, though few of them are run
Point = dict[str, Any]  # settings, quality, cost (share of full depth's)


def pareto(cost: Floats, quality: Floats) -> list[int]:
    """Places of the points, by rising cost, that are better than every other that costs no more. cost, quality: (points,)."""
    order = np.lexsort((-quality, cost))
    before = np.concatenate([[-np.inf], np.maximum.accumulate(quality[order])[:-1]])
    return order[quality[order] > before].tolist()


def front(ledger: Ledger, prices: Prices, encoder: int = 14, decoder: int = 88, minimum: int = 1) -> list[Point]:
    """The front of a grid of about (encoder + 1)^streams x decoder settings, by rising cost. No model runs."""
    last = thresholds_of(ledger.decoder, ledger.layers[DECODER], decoder, minimum)
    found = replay(ledger, grid(ledger, encoder, minimum), last, minimum)
    share, quality = found.share(prices).ravel(), (found.right / found.rows).ravel()
    places = pareto(share, quality)
    return [
        {"settings": found.settings(*divmod(place, len(last))), "quality": float(quality[place]), "cost": float(share[place])}
        for place in places
    ]


def within(ledger: Ledger, budget: float, prices: Prices, minimum: int = 1, encoder: int = 14, decoder: int = 88) -> Calibration:
    """The thresholds of most right answers at a mean cost of at most `budget` times full depth's; the cheaper of equals.

    Raises CalibrationError for a budget outside (0, 1], or below the cheapest setting's cost.
    """
    known_budget(budget)
    enough(ledger.rows, ledger.layers)
    points = front(ledger, prices, encoder, decoder, minimum)
    best = _affordable(points, budget, prices)
    saved = ledger.etr(ledger.depths(best["settings"], minimum))
    return _told(best, points, ledger.rows, ledger.full, saved, budget, prices, [])


def known_budget(budget: float) -> float:
    """The budget itself. Raises CalibrationError if it is not a share of full depth's cost."""
    if not 0 < budget <= 1:
        raise CalibrationError(f"budget={budget} is not a share of full depth's cost. Allowed: above 0, at most 1; 0.5 is half.")
    return budget


def _affordable(points: Sequence[Point], budget: float, prices: Prices) -> Point:
    can = [p for p in points if p["cost"] <= budget * (1 + 1e-9)]
    if not can:
        least = min(p["cost"] for p in points)
        raise CalibrationError(
            f"No setting that was looked at costs at most {budget:g} of full depth ({prices.unit}); the cheapest costs {least:.3f}. "
            "Allow more, or train exits that leave earlier."
        )
    return max(can, key=lambda p: (p["quality"], -p["cost"]))


def _told(
    best: Point, points: Sequence[Point], rows: int, full: float, saved: float, budget: float, prices: Prices, tried: list[dict[str, Any]]
) -> Calibration:
    kept = min(1.0, best["quality"] / full) if full > 0 else 0.0
    cost = {"unit": prices.unit, "share": best["cost"], "prices": prices.to_dict()}
    return Calibration(
        kept, rows, full, best["quality"], saved, dict(best["settings"]), tried, budget=budget, cost=cost, front=list(points)
    )  # fmt: skip


@dataclass(frozen=True)
class _Option:
    """A threshold of one stream: what a row is thought to pay for the stream, and to lose."""

    threshold: float
    cost: float
    loss: float


@dataclass
class _Search:
    """Live runs under a budget: what was run, and what it is thought that combinations cost and lose."""

    run: Callable[[dict[str, Any], bool], Outcome]
    rows: Sequence[Any]
    quality: Quality | None
    prices: Prices
    trials: int
    progress: Callable[[int, int], None] | None
    together: Sequence[str] = ()
    tried: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, streams: Mapping[str, int]) -> Trace:
        """Full depth, against which all is judged."""
        self.base: dict[str, float] = dict.fromkeys(streams, NEVER)
        self.full = self.run(dict(self.base), True)
        self.judge = judged(self.quality, self.full)
        self.whole = self.prices.fixed
        self.best = float(marks_of(self.judge(self.full.outputs, self.rows), len(self.rows), 0.0).mean())
        return self.full.trace

    def attempt(self, settings: dict[str, float]) -> dict[str, Any]:
        """Run a setting, or find it among those that were run."""
        known = next((t for t in self.tried if t["settings"] == settings), None)
        if known is not None:
            return known
        out = self.run(dict(settings), False)
        quality = float(marks_of(self.judge(out.outputs, self.rows), len(self.rows), 0.0).mean())
        self.tried.append({"settings": settings, "quality": quality, "etr": etr(out.trace), "cost": self.share(out.trace)})
        if self.progress is not None:
            self.progress(len(self.tried), self.trials)
        return self.tried[-1]

    def share(self, trace: Trace) -> float:
        """Cost of a run as a share of full depth's."""
        return 1 - etr(trace) if self.prices.unit == "etr" else self.prices.of_trace(trace) / self.prices.of_trace(self.full.trace)

    def alone(self, stream: str, sure: Tensor, layers: int, minimum: int, streams: int) -> list[_Option]:
        """Thresholds of one stream, from full depth down: some are run, the losses of the others lie between."""
        each = max(1, min(6, self.trials // 2 // streams))
        depth, loss = [float(layers)], [0.0]
        for threshold, mean in proposals(sure, layers, minimum, each + 1)[1:]:
            if len(self.tried) < self.trials:
                depth.append(mean)
                loss.append(max(0.0, self.best - self.attempt({**self.base, stream: threshold})["quality"]))
        options = []
        for threshold, mean in proposals(sure, layers, minimum, FINE):
            lost = float(np.interp(mean, depth[::-1], loss[::-1]))
            options.append(_Option(threshold, self.foretold(stream, depths_at(sure, threshold, minimum)), lost))
        self.whole += options[0].cost
        return options

    def foretold(self, stream: str, depth: Tensor) -> float:
        """What a row pays for these depths; ETR weighs the rows of an encoder and the steps of a decoder alike."""
        counted = ran_layers(depth, len(self.prices.layers[stream])).double()
        counted = counted / (float(counted[0]) if self.prices.unit == "etr" else len(depth))
        paying = self.together if stream in self.together else (stream,)
        return self.prices.whole(dict.fromkeys(paying, counted)) - self.prices.fixed


def spend(
    run: Callable[[dict[str, Any], bool], Outcome],
    rows: Sequence[Any],
    streams: Mapping[str, int],
    budget: float,
    prices: Prices,
    quality: Quality | None = None,
    trials: int = 24,
    minimum: int = 1,
    progress: Callable[[int, int], None] | None = None,
    together: Sequence[str] = (),
) -> Calibration:
    """The same by live runs, at most `trials`: some thresholds of each stream alone, then the combinations that seem to fit the budget and
    lose least. What is chosen was run, and its cost is that of its trace. run: (settings, record) -> Outcome. together: streams that leave
    as one, of which `streams` has the first. `front`: of what was run."""
    known_budget(budget)
    enough(len(rows), streams)
    search = _Search(run, rows, quality, prices, trials, progress, together)
    sure = search.begin(streams).sureness
    lines = {s: search.alone(s, sure[s], streams[s], minimum, len(sure)) for s in streams if s in sure}
    combos = []
    for choice in itertools.product(*lines.values()):
        share = sum(option.cost for option in choice) + search.prices.fixed
        combos.append((share / search.whole, sum(option.loss for option in choice), {s: o.threshold for s, o in zip(lines, choice)}))
    fitting = sorted((c for c in combos if c[0] <= budget), key=lambda c: (c[1], c[0]))
    for _, _, settings in [*fitting[: max(0, trials - len(search.tried) - 1)], min(combos, key=lambda c: c[0])]:
        if len(search.tried) < trials and settings != search.base:
            search.attempt({**search.base, **settings})
    points = [*search.tried, {"settings": search.base, "quality": search.best, "etr": etr(search.full.trace), "cost": 1.0}]
    best = _affordable(points, budget, prices)
    kept = [points[i] for i in pareto(np.array([p["cost"] for p in points]), np.array([p["quality"] for p in points]))]
    line = [{name: point[name] for name in ("settings", "quality", "cost")} for point in kept]
    return _told(best, line, len(rows), search.best, best["etr"], budget, prices, search.tried)
