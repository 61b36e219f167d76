"""SoFT, sorted models: every one of some depths is a model of its own, and each token leaves at the first whose answer is sure enough
(Valipour et al. 2023, arXiv:2309.08968).

Training (`exitwise.train.language`): the mean of the losses at all depths of the grid, equal weights, one head. The first n layers with the
head are then a model by themselves (`exitwise cut`). At a depth of the grid a token leaves when its greatest probability is above that
depth's threshold; the thresholds of the paper's 13B model fall from 0.95 to 0.7 along its grid, here in a straight line from `decoder` to
`decoder` - `fall`. Tokens that a deeper layer has missed run late, which is exact. Drafting with a sorted model is `layerskip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..criteria import Step, single
from ..errors import KnobError
from ..lm.drafting import certainty
from ..lm.stair import POLICIES
from ..method import RANK, Knob, Method, Settings, reading_plan
from ..reading import Reading, View
from ..run.walk import Plan


def probability(view: View) -> Tensor:
    """The greatest probability of the answer, (rows,)."""
    return certainty(view.logits)


@dataclass(frozen=True)
class Sorted(Reading):
    """A reading rule that is asked at the depths of a grid only, with a threshold that falls along it."""

    every: int = 1
    fall: float = 0.0

    def may_leave(self, at: Step) -> bool:
        return super().may_leave(at) and at.layer % self.every == 0

    def leaves(self, sureness: Sequence[float], at: Step, rows: object) -> list[bool]:
        limit = single(self.threshold - self.fall * (at.layer - self.minimum) / max(1, at.layers - self.minimum))
        return [sure > limit for sure in sureness]


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One rule for the decoder. Raises KnobError for a model without one."""
    if "decoder" not in layers:
        raise KnobError(f"The streams are {', '.join(layers)}: this method needs a decoder.")
    return reading_plan(
        settings, layers,
        lambda threshold: Sorted(probability, threshold, settings["minimum"], every=settings["every"], fall=settings["fall"]),
    )  # fmt: skip


METHOD = Method(
    paper="arXiv:2309.08968",
    about="each token leaves at the first of some depths whose answer is sure; the model is trained to answer at all of them",
    plan=plan,
    calibrated=("decoder",),
    knobs=(
        Knob("decoder", 1.0, "Probability above which a token leaves; 1 or more never. Choose it by calibration.", 0.0, 2.0),
        Knob("fall", 0.0, "by how much the threshold has fallen at full depth", 0.0, 1.0),
        Knob("every", 4, "the grid: depths that are multiples of this", 1, 1000),
        Knob("minimum", 4, "least depth, in layers", 1, 1000),
        Knob("keys_values", "run late", "what becomes of keys and values of skipped layers", choices=POLICIES),
        RANK,
    ),
)
