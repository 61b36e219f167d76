"""LayerSkip: rows leave layers out by chance, later ones more often, and every layer's exit has a loss, by a curriculum (Elhoushi et al.
2024, arXiv:2404.16710).

Layer l is left out for a row with the chance dropout * S(t) * (2^(l/(L-1)) - 1); S is 1 for a model that was trained before and grows
from 0 where `scratch` is set. The loss of the exits is weighed by e(l), over those that the curriculum has at the step; the last always
counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import KnobError
from ..train.exits import Objective
from ..train.language import noise, weights
from ..train.language.objectives import layers_dropped
from .base import Teaching

CURRICULA = ("rotational", "gradual", "none")


@dataclass(frozen=True)
class TEACHING(Teaching):
    """dropout: greatest chance (p_max). scale: of the early exits' losses (e_scale). curriculum: 'rotational' (every `every`-th exit,
    another at each step), 'gradual' (from the last downwards), or 'none' (all exits). The defaults are the paper's for Llama 2 7B."""

    dropout: float = 0.1
    scale: float = 0.2
    curriculum: str = "rotational"
    every: int = 8
    scratch: bool = False

    paper = "arXiv:2404.16710"
    about = "layers are left out by chance, and every exit has a loss"

    def __post_init__(self) -> None:
        noise.dropout_rates(2, self.dropout)
        if self.curriculum not in CURRICULA:
            raise KnobError(f"curriculum={self.curriculum!r} is not allowed. Allowed: {', '.join(CURRICULA)}.")
        if self.every < 1 or self.scale < 0:
            raise KnobError(f"every={self.every} and scale={self.scale}: allowed are 1 and more, and 0 and more.")

    def objective(self, layers: int, steps: int | None) -> Objective:
        if steps is None and (self.scratch or self.curriculum == "gradual"):
            raise KnobError("This curriculum is told by updates: give their number (--steps), not the time alone.")

        def active(step: int) -> set[int]:
            if self.curriculum == "rotational":
                return weights.rotating(step, layers, min(self.every, layers))
            return weights.gradual(step, layers, steps or 1) if self.curriculum == "gradual" else set(range(1, layers + 1))

        return layers_dropped(
            lambda step: weights.scaled(layers, self.scale, active(step)),
            lambda step: noise.dropout_rates(layers, self.dropout, step, steps if self.scratch else None),
        )
