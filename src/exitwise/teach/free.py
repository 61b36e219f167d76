"""FREE: one shallow exit and the full model, and the shallow layers' states are drawn to those of deep layers (Bae et al. 2023,
arXiv:2310.05424).

(E CE_E + L CE_L) / (E + L) + distil * mean squared error between each of the first E states and the nearest of the later ones, chosen
anew at each step. Its threshold (a mixture of two Beta laws) belongs to decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DepthError, KnobError
from ..train.exits import Objective
from ..train.language.objectives import shallow_and_deep
from .base import Teaching


@dataclass(frozen=True)
class TEACHING(Teaching):
    """depth: of the shallow exit; 0 takes a quarter of the layers, as the paper does for T5-large. distil: alpha, the paper's 0.5."""

    depth: int = 0
    distil: float = 0.5

    paper = "arXiv:2310.05424"
    about = "one shallow exit and full depth, with distillation from layer to layer"

    def __post_init__(self) -> None:
        if self.distil < 0:
            raise KnobError(f"distil={self.distil} is below 0. Allowed: 0 (none) and more.")

    def objective(self, layers: int, steps: int | None) -> Objective:
        depth = self.depth or max(1, layers // 4)
        if not 1 <= depth < layers:
            raise DepthError(f"depth={depth} is not a shallow exit of {layers} layers. Allowed: 1..{layers - 1}.")
        return shallow_and_deep(depth, layers, self.distil)
