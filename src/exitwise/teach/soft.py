"""SoFT: nested sub-models of the first n layers are tuned together, with the shared norm and head (Kavehzadeh et al. 2024, Sorted LLaMA,
arXiv:2309.08968).

The loss is the mean cross-entropy over the depths, all of them at every step. A sub-model of n layers is then a model of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..train.exits import Objective
from ..train.language import weights
from ..train.language.objectives import weighed
from .base import Teaching


@dataclass(frozen=True)
class TEACHING(Teaching):
    """depths: of the sub-models; none takes every `every`-th and the last. every: 4 in the paper (40 layers, from 12 on)."""

    depths: tuple[int, ...] = ()
    every: int = 4

    paper = "arXiv:2309.08968"
    about = "nested sub-models of the first n layers, all tuned at every step"

    def objective(self, layers: int, steps: int | None) -> Objective:
        chosen = self.depths or (*range(self.every, layers, self.every), layers)
        shares = weights.uniform(chosen, layers)
        return weighed(lambda step: shares)
