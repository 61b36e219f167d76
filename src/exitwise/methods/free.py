"""FREE: two depths only, and the tokens that left early run through the deep layers together with the next one that needs them (Bae et
al. 2023, arXiv:2310.05424).

A token leaves at `depth` when its greatest probability is above the second by more than the threshold. Those that left wait; a token that
is not sure takes them along in one causal pass, so that every layer's keys and values are exact, and what was said stays said
(synchronised parallel decoding, here `keys_values='run late'`). Training (`exitwise.train.language`): the mean of both exits' losses,
weighted by depth, and the shallow states' distance from the deep ones. `beta_threshold` fits the threshold to what was seen, instead of
one for each task: two beta laws by moments, one of the gaps of tokens on which both exits agree, one of the others. With `adaptive` a
running engine does so by itself before each run (the paper: each sequence), from every token that a full pass took along or ended in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..criteria import Step
from ..errors import KnobError
from ..lm.plan import Decoding
from ..lm.stair import EXACT, POLICIES
from ..method import RANK, Knob, Method, Settings, reading_plan
from ..reading import Reading, View
from ..run.walk import Plan


def gap(view: View) -> Tensor:
    """The greatest probability minus the second greatest, (rows,)."""
    first, second = view.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


@dataclass(frozen=True)
class Shallow(Reading):
    """A reading rule that is asked at one depth only."""

    depth: int = 1

    def may_leave(self, at: Step) -> bool:
        return at.layer == self.depth < at.layers


@dataclass(frozen=True)
class Watched(Shallow):
    """The same, which asks whatever its threshold: what it sees is what the next threshold comes from."""

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int] | None:
        return None


def beta_threshold(
    gaps: Sequence[float], agree: Sequence[bool], zeta: float = 0.4, low: float = 0.3, high: float = 0.9, points: int = 10
) -> float:
    """The first of some thresholds above which a token more likely than `zeta` is one on which both exits agree.

    gaps: of tokens whose two exits were both seen; agree: whether they said the same. Raises KnobError where one of both kinds has fewer
    than two.

    >>> rng = np.random.default_rng(0)
    >>> gaps = [*rng.beta(8, 2, 4000), *rng.beta(2, 4, 4000)]
    >>> round(beta_threshold(gaps, [True] * 4000 + [False] * 4000), 3)
    0.633
    """
    same, other = Moments(), Moments()
    for each, agrees in zip(gaps, agree, strict=True):
        (same if agrees else other).add(each)
    if min(same.count, other.count) < 2:
        raise KnobError(f"{same.count} tokens agree and {other.count} do not. Two of each kind are needed, better hundreds.")
    return _between(same, other, zeta, low, high, points)


@dataclass
class Moments:
    """Count, sum and sum of squares of gaps, each moved off 0 and 1 a little: all that a beta law is fitted to."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """One more."""
        value = min(max(value, 1e-4), 1 - 1e-4)
        self.count, self.total, self.squares = self.count + 1, self.total + value, self.squares + value * value

    def beta(self) -> tuple[float, float]:
        """The two parameters of the law with this mean and variance."""
        mean = self.total / self.count
        spread = max(self.squares / self.count - mean * mean, 1e-12)
        first = mean * (mean * (1 - mean) / spread - 1)
        return first, first * (1 - mean) / mean


def _between(one: Moments, other: Moments, zeta: float, low: float = 0.3, high: float = 0.9, points: int = 10) -> float:
    """The first point of the grid that is more likely than `zeta` of the law with the greater mean, counted from the grid's end."""
    grid = np.linspace(low, high, points)
    sure, unsure = sorted((one.beta(), other.beta()), key=lambda law: -law[0] / sum(law))
    likelier = _log_density(grid, *sure) - _log_density(grid, *unsure) > math.log(zeta / (1 - zeta))
    return float(grid[min(max(0, points - int(likelier.sum())), points - 1)])


def _log_density(x: np.ndarray, a: float, b: float) -> np.ndarray:
    found: np.ndarray = (a - 1) * np.log(x) + (b - 1) * np.log(1 - x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    return found


LEAST = 20  # tokens of each kind before the first choice: fewer make no law


class Agreement:
    """The threshold of a running engine: chosen anew before each run from all tokens that both exits have read, so many times at most.

    start: in force until there are enough tokens of both kinds. See `beta_threshold` for zeta.
    """

    def __init__(self, start: float, zeta: float, refits: int) -> None:
        self.threshold, self.zeta, self.refits = start, zeta, refits
        self.same, self.other = Moments(), Moments()

    @property
    def open(self) -> bool:
        """Whether another choice may come."""
        return self.refits > 0

    def begin(self) -> float:
        """A run starts; the threshold that holds in it."""
        if self.open and min(self.same.count, self.other.count) >= LEAST:
            self.threshold, self.refits = _between(self.same, self.other, self.zeta), self.refits - 1
        return self.threshold

    def see(self, sure: Sequence[float], agree: Sequence[bool]) -> None:
        """More tokens: the gap at the shallow exit, and whether full depth says the same."""
        for each, agrees in zip(sure, agree, strict=True):
            (self.same if agrees else self.other).add(each)


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One rule, at one depth. Raises KnobError for a model without a decoder, or too shallow a one, and for an adaptive threshold where
    tokens that left never get to full depth."""
    if "decoder" not in layers or settings["depth"] >= layers["decoder"]:
        raise KnobError(f"depth={settings['depth']} needs a decoder of more layers; the model has {dict(layers)}.")
    kind = Watched if settings["adaptive"] else Shallow
    found = reading_plan(settings, layers, lambda threshold: kind(gap, threshold, settings["depth"], depth=settings["depth"]))
    if not settings["adaptive"]:
        return found
    if settings["keys_values"] not in EXACT:
        raise KnobError(
            f"An adaptive threshold compares tokens at full depth, where keys_values={settings['keys_values']!r} never takes those that "
            f"left. Allowed: {', '.join(EXACT)}."
        )
    return replace(found, decoding=Decoding(watch=Agreement(settings["decoder"], settings["zeta"], settings["refits"])))


METHOD = Method(
    paper="arXiv:2310.05424",
    about="a token leaves at one shallow depth if it is sure; those that left go deep together with the next that is not",
    plan=plan,
    calibrated=("decoder",),
    knobs=(
        Knob("decoder", 1.0, "Gap of the two likeliest at which a token leaves; 1 or more never. See `beta_threshold`.", 0.0, 2.0),
        Knob("depth", 4, "the shallow depth, in layers", 1, 1000),
        Knob(
            "adaptive", False, "the threshold follows what the runs of an engine show; `decoder` is where it starts", choices=(False, True)
        ),
        Knob("zeta", 0.4, "adaptive: how likely both exits must agree for a token to leave", 0.01, 0.99),
        Knob("refits", 300, "adaptive: how often the threshold is chosen anew at most, once before each run", 0, 1_000_000),
        Knob("keys_values", "run late", "what becomes of keys and values of skipped layers", choices=POLICIES),
        RANK,
    ),
)
