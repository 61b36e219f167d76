"""Rules that read an answer at every exit, and leave when it is sure: what they see, what they measure, and the one rule made of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .criteria import Step, single
from .errors import InputError, KnobError
from .heads import Said


@dataclass
class View:
    """What a reading rule sees after a layer, of the rows that still walk.

    token: (rows, width) the state that is read: the first token's of an encoder, the newest one's of a decoder. before: the same one layer
    earlier. memory: what the measure noted about these rows at earlier layers, each (rows, ...); it may add and exchange entries, and the
    walk drops the rows that leave. parts: the trained parts of the exits. The answer itself is read when it is first asked for.
    """

    at: Step
    token: Tensor
    before: Tensor
    read: Callable[[], Said]
    memory: dict[str, Tensor] = field(default_factory=dict)
    parts: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    _said: Said | None = None

    @property
    def said(self) -> Said:
        """What this exit says; the head runs at most once."""
        if self._said is None:
            self._said = self.read()
        return self._said

    @property
    def logits(self) -> Tensor:
        """(rows, classes) in float32."""
        return self.said.logits.float()

    @property
    def was_read(self) -> bool:
        """Whether the answer was asked for."""
        return self._said is not None


Measure = Callable[[View], Tensor]
Decay = Callable[[float, Step], float]


def still(threshold: float, at: Step) -> float:
    """The threshold itself, whatever the step."""
    return threshold


@dataclass(frozen=True)
class Reading:
    """Leave when what is measured on the answer of an exit is above the threshold.

    measure: View -> (rows,) sureness, in [0, 1]; pads are not seen. threshold: 1 or more never leaves, whatever rounding does. minimum:
    least depth in layers. strict: above, or (False) at or above. decay: the threshold in force at a step. remembers: the measure builds on
    earlier exits, so that it is asked from the first layer on. needs: names of trained parts without which it cannot measure.
    """

    measure: Measure
    threshold: float
    minimum: int = 1
    strict: bool = True
    decay: Decay = still
    remembers: bool = False
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold < 0:
            raise KnobError(
                f"A threshold of {self.threshold} is outside the range of a sureness. Allowed: 0 and above; 1 or more means never."
            )
        if self.minimum < 1:
            raise KnobError(f"minimum={self.minimum} is not a depth. Depths start at 1.")

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int] | None:
        return [layers] * rows if self.threshold >= 1 else None

    def may_leave(self, at: Step) -> bool:
        return (self.remembers or self.minimum <= at.layer) and at.layer < at.layers

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        raise KnobError(
            "This method reads answers, so that a pair of states does not say how sure it is. Calibrate it by `Engine.calibrate`."
        )

    def leaves(self, sureness: Sequence[float], at: Step, rows: Sequence[int]) -> list[bool]:
        limit = single(self.decay(self.threshold, at))
        if at.layer < self.minimum:
            return [False] * len(sureness)
        return [sure > limit or (sure == limit and not self.strict) for sure in sureness]


@dataclass(frozen=True)
class Hindsight:
    """A control, no rule that saves anything: all layers run, then each row answers at the first exit that says what the last one says.

    Depths are those that would have been enough; calls, rows and work of the trace are what ran, which is everything.
    """

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int] | None:
        return None

    def may_leave(self, at: Step) -> bool:
        return False

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        raise KnobError("An oracle has no sureness and no threshold: there is nothing to record or to calibrate.")

    def leaves(self, sureness: Sequence[float], at: Step, rows: Sequence[int]) -> list[bool]:
        raise AssertionError("hindsight is never asked on the way")


def enough(answers: Sequence[Tensor]) -> list[int]:
    """The first depth (1..n) whose answer is that of depth n, for each row; answers: logits (rows, classes) of the depths 1..n."""
    if answers[-1].shape[1] < 2:
        raise InputError("An oracle compares classes, but this head has one. Use a method for regression (patience).")
    said = torch.stack([logits.argmax(-1) for logits in answers], 1)
    depths: list[int] = ((said == said[:, -1:]).int().argmax(1) + 1).tolist()
    return depths


def certainty(view: View) -> Tensor:
    """One minus the entropy of the answer over its greatest value ln(classes), (rows,): uniform gives 0, one-hot 1.

    An entropy below S nats is a certainty above `1 - S / ln(classes)`: see `entropy_threshold`. Raises InputError for a single class.
    """
    return certain(view.logits)


def certain(logits: Tensor) -> Tensor:
    """`certainty` of logits (rows, classes).

    >>> [round(float(c), 4) for c in certain(torch.tensor([[0.5, 0.25, 0.25], [1, 1, 1]]).log())]
    [0.0536, 0.0]
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise InputError("The entropy of an answer needs two classes or more; this head has one. Use a method for regression (patience).")
    return (1 - torch.special.entr(logits.softmax(-1)).sum(-1) / math.log(classes)).clamp(min=0)


def entropy_threshold(nats: float, classes: int) -> float:
    """The threshold on certainty that stands for an entropy below `nats` (DeeBERT's S).

    >>> round(entropy_threshold(0.2, 2), 4)
    0.7115
    """
    if classes < 2 or not nats >= 0:
        raise KnobError(f"An entropy of {nats} nats over {classes} classes is not possible. Allowed: 0 and above, two classes or more.")
    return max(0.0, 1 - nats / math.log(classes))
