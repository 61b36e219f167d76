"""SkipDecode: the model learns under the schedule that it will decode by, fewer layers at later positions (Del Corro et al. 2023,
arXiv:2307.02628).

From abstracts and reviews: how the paper rounds and how it trains in parallel are our readings. All positions are computed at every
layer, and a position that skips it keeps its state; positions that need a layer come before those that do not, so that keys are right.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..train.exits import Objective
from ..train.language.objectives import scheduled
from .base import Teaching


@dataclass(frozen=True)
class TEACHING(Teaching):
    """most, least: layers at the first position and from the last of `length` on; 0 takes all, and half of them. warm: layers at the bottom
    that always run."""

    most: int = 0
    least: int = 0
    length: int = 128
    warm: int = 1

    paper = "arXiv:2307.02628"
    about = "the loss at full depth, under the schedule of layers by position"

    def objective(self, layers: int, steps: int | None) -> Objective:
        return scheduled(layers, self.most or layers, self.least or max(1, layers // 2), self.length, self.warm)
