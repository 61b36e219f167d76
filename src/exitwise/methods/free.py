"""FREE: two depths only, and the tokens that left early run through the deep layers together with the next one that needs them (Bae et
al. 2023, arXiv:2310.05424).

A token leaves at `depth` when its greatest probability is above the second by more than the threshold. Those that left wait; a token that
is not sure takes them along in one causal pass, so that every layer's keys and values are exact, and what was said stays said
(synchronised parallel decoding, here `keys_values='run late'`). Training (`exitwise.train.language`): the mean of both exits' losses,
weighted by depth, and the shallow states' distance from the deep ones. `beta_threshold` fits the threshold to what was seen, instead of
one for each task: two beta laws by moments, one of the gaps of tokens on which both exits agree, one of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..criteria import Step
from ..errors import KnobError
from ..lm.stair import POLICIES
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
    seen, same = np.clip(np.asarray(gaps, float), 1e-4, 1 - 1e-4), np.asarray(agree, bool)
    if same.sum() < 2 or (~same).sum() < 2:
        raise KnobError(f"{int(same.sum())} tokens agree and {int((~same).sum())} do not. Two of each kind are needed, better hundreds.")
    grid = np.linspace(low, high, points)
    sure, unsure = sorted((_beta(seen[same]), _beta(seen[~same])), key=lambda law: -law[0] / sum(law))
    ratio = _density(grid, *sure) / (_density(grid, *sure) + _density(grid, *unsure))
    return float(grid[min(max(0, points - int((ratio > zeta).sum())), points - 1)])


def _beta(values: np.ndarray) -> tuple[float, float]:
    """The two parameters of a beta law by its moments."""
    mean, spread = float(values.mean()), float(values.var())
    first = mean * (mean * (1 - mean) / max(spread, 1e-12) - 1)
    return first, first * (1 - mean) / mean


def _density(x: np.ndarray, a: float, b: float) -> np.ndarray:
    found: np.ndarray = np.exp((a - 1) * np.log(x) + (b - 1) * np.log(1 - x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b))
    return found


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One rule, at one depth. Raises KnobError for a model without a decoder, or too shallow a one."""
    if "decoder" not in layers or settings["depth"] >= layers["decoder"]:
        raise KnobError(f"depth={settings['depth']} needs a decoder of more layers; the model has {dict(layers)}.")
    return reading_plan(settings, layers, lambda threshold: Shallow(gap, threshold, settings["depth"], depth=settings["depth"]))


METHOD = Method(
    paper="arXiv:2310.05424",
    about="a token leaves at one shallow depth if it is sure; those that left go deep together with the next that is not",
    plan=plan,
    calibrated=("decoder",),
    knobs=(
        Knob("decoder", 1.0, "Gap of the two likeliest at which a token leaves; 1 or more never. See `beta_threshold`.", 0.0, 2.0),
        Knob("depth", 4, "the shallow depth, in layers", 1, 1000),
        Knob("keys_values", "run late", "what becomes of keys and values of skipped layers", choices=POLICIES),
        RANK,
    ),
)
