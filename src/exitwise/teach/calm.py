"""CALM: every layer's exit has a loss, and deeper ones weigh more: i / sum i (Schuster et al. 2022, arXiv:2207.07061).

This trains the model. The classifier that says when an answer is ready is trained after it, the rest frozen (`methods/calm.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..train.exits import Objective
from ..train.language import weights
from ..train.language.objectives import weighed
from .base import Teaching


@dataclass(frozen=True)
class TEACHING(Teaching):
    """It has no options."""

    paper = "arXiv:2207.07061"
    about = "a loss at every exit, with weights that rise with the depth"

    def objective(self, layers: int, steps: int | None) -> Objective:
        shares = weights.rising(layers)
        return weighed(lambda step: shares)
