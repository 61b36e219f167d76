"""EE-LLM: a token leaves at one of some exits when its greatest probability reaches a threshold; missing keys and values are made by
running all tokens since the last full pass again (Chen et al. 2023, arXiv:2312.04916).

The exits of the paper may have a norm, a net and a head of their own, trained with the model or, frozen, after it (EE-Tuning,
`exitwise.train.language`); here the model's own norm and head read every exit, as the paper's tied variant does. At most `pending` tokens
may wait: then the next one runs through all layers, and takes them along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..criteria import Step
from ..errors import KnobError
from ..lm.stair import POLICIES
from ..method import RANK, Knob, Method, Settings, reading_plan
from ..reading import Reading
from ..run.walk import Plan
from .soft import probability


@dataclass(frozen=True)
class AtExits(Reading):
    """A reading rule that is asked at given depths, and never at every `pending`-th step."""

    exits: tuple[int, ...] = ()
    pending: int = 32

    def may_leave(self, at: Step) -> bool:
        return at.layer in self.exits and at.layer < at.layers and at.step % self.pending != 0


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One rule for the decoder. Raises KnobError for a model without one, and for exits that it does not have."""
    depth = layers.get("decoder", 0)
    exits = tuple(settings["depths"]) or (max(1, depth // 4), max(1, depth // 2))  # as in the paper's 7B model: 8 and 16 of 32
    if not depth or any(not 1 <= e < depth for e in exits):
        raise KnobError(
            f"Exits {exits} do not fit the model's layers, {dict(layers)}. Give depths from 1 to one less than its decoder has."
        )
    rule = lambda threshold: AtExits(probability, threshold, strict=False, exits=exits, pending=settings["pending"])  # noqa: E731
    return reading_plan(settings, layers, rule)


METHOD = Method(
    paper="arXiv:2312.04916",
    about="a token leaves at one of two exits if it is sure enough; missing keys are made by running the waiting tokens again",
    plan=plan,
    calibrated=("decoder",),
    knobs=(
        Knob("decoder", 1.0, "Probability at which a token leaves; 1 or more never. The paper's client has 0.8.", 0.0, 2.0),
        Knob("depths", (), "exits: layers after which a token may leave; none: a quarter and a half of all"),
        Knob("pending", 32, "steps after which a token runs through all layers at the latest", 2, 100_000),
        Knob("keys_values", "recompute", "what becomes of keys and values of skipped layers", choices=POLICIES),
        RANK,
    ),
)
