"""EE-LLM: a token leaves at one of some exits when its greatest probability reaches a threshold; missing keys and values are made by
running all tokens since the last full pass again (Chen et al. 2023, arXiv:2312.04916).

An exit may have a norm, and a net, of its own before the model's head: trained on the frozen model (EE-Tuning, Pan et al. 2024,
arXiv:2402.00518; `exitwise train --method`) and given as `Engine(..., exits=...)`. The state that leaves is then read through that exit's
own parts, while its keys and values go on from the state itself. Without them the model's own norm and head read every exit, as the
papers' tied variant does. At most `pending` tokens may wait: then the next one runs through all layers, and takes them along.
Differs: an exit's own norm is a gain, and the model's final norm and head stand after it; untied heads are not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..criteria import Step
from ..errors import KnobError
from ..heads import Exits, Shape
from ..lm.stair import POLICIES
from ..method import RANK, Knob, Method, Settings, reading_plan
from ..reading import Reading
from ..run.walk import Plan
from .soft import probability


class OwnExit(nn.Module):
    """state + net(norm(state)), then a gain: what an exit reads before the model's norm and head. States (..., width)."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        if inner:
            self.norm = nn.RMSNorm(width, eps)
            self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
            self.down = nn.Linear(inner, width, bias=False)
            nn.init.zeros_(self.down.weight)
        self.inner = inner

    def forward(self, state: Tensor) -> Tensor:
        if self.inner:
            normed = self.norm(state)
            state = state + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return state * self.gain


class OwnExits(nn.Module):
    """Exits with parts of their own at some depths, in the form of `heads.Ramps`. depths: where they are; at all others a state stays what
    it is, and the model's own head reads it."""

    def __init__(self, width: int, depths: Sequence[int], inner: int, eps: float) -> None:
        super().__init__()
        self.depths = tuple(sorted(set(depths)))
        self.at = nn.ModuleDict({str(depth): OwnExit(width, inner, eps) for depth in self.depths})

    def forward(self, layer: int, token: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """(..., width) of (..., width) after `layer`."""
        if layer not in self.depths:
            return token
        own: Tensor = self.at[str(layer)](token.float())  # trained parts are float32
        return own.to(token)


def exits(shape: Shape, depths: Sequence[int] = (), inner: int = 0, eps: float = 1e-6) -> Exits:
    """Untrained exits, which read what the model's own head reads. depths: none takes a quarter and a half of the layers; inner: width of
    their nets, 0 for a gain alone; eps: of the nets' norms. Raises KnobError for depths that the model does not have."""
    chosen = usual(tuple(depths), shape.layers)
    made = Exits(shape, heads=False, ramps=OwnExits(shape.width, chosen, inner, eps))
    made.made_by = "eellm"
    made.about = {"depths": list(chosen), "inner": inner, "eps": eps}
    return made


def usual(depths: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The depths of the exits; none takes a quarter and a half of the layers, as in the paper's 7B model: 8 and 16 of 32. Raises KnobError
    for depths outside 1..layers - 1."""
    found = depths or tuple(sorted({max(1, layers // 4), max(1, layers // 2)}))
    if any(not 1 <= depth < layers for depth in found):
        raise KnobError(f"Exits {found} do not fit {layers} layers. Give depths from 1 to one less than the model's decoder has.")
    return found


@dataclass(frozen=True)
class AtExits(Reading):
    """A reading rule that is asked at given depths, and never at every `pending`-th step."""

    exits: tuple[int, ...] = ()
    pending: int = 32

    def may_leave(self, at: Step) -> bool:
        return at.layer in self.exits and at.layer < at.layers and at.step % self.pending != 0


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One rule for the decoder. Raises KnobError for a model without one, and for exits that it does not have."""
    if "decoder" not in layers:
        raise KnobError(f"The streams are {', '.join(layers)}: this method needs a decoder.")
    chosen = usual(tuple(settings["depths"]), layers["decoder"])
    rule = lambda threshold: AtExits(probability, threshold, strict=False, exits=chosen, pending=settings["pending"])  # noqa: E731
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
    exits=exits,
)
