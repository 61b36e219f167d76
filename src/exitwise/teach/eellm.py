"""EE-LLM and EE-Tuning: exits with a norm, and a gated net where one is asked for, of their own before the model's head (Chen et al. 2024,
arXiv:2312.04916; Pan et al. 2024, arXiv:2402.00518).

Tuning freezes the model and trains the exits alone, each with the same weight unless it is given. They begin as the identity: a gain of
1, and a net that adds nothing. The parts themselves are those of the paper's file in `methods`, which decodes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import KnobError
from ..heads import Exits
from ..methods.eellm import exits as untrained
from ..methods.eellm import usual
from ..train.exits import Objective
from ..train.language.objectives import tuned_exits
from .base import Teaching


@dataclass(frozen=True)
class TEACHING(Teaching):
    """depths: of the exits; none takes a quarter and a half of the layers. weights: one for each depth, or none for 1 each. inner: width
    of the exits' nets, 0 for a gain alone, -1 for the model's own. warmup: updates over which the weights grow."""

    depths: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    inner: int = -1
    warmup: int = 0

    paper = "arXiv:2402.00518"
    about = "exits with a norm or a net of their own on a frozen model"
    frozen = True

    def _early(self, layers: int) -> dict[int, float]:
        depths = usual(self.depths, layers)
        shares = self.weights or (1.0,) * len(depths)
        if len(shares) != len(depths):
            raise KnobError(f"{len(shares)} weights were given for {len(depths)} depths. Give one for each.")
        return dict(zip(depths, shares, strict=True))

    def exits(self, model: Any, layers: int) -> Exits:
        config = model.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size if self.inner < 0 else self.inner
        shape = super().exits(model, layers).shape
        return untrained(shape, tuple(self._early(layers)), inner, getattr(config, "rms_norm_eps", 1e-6))

    def objective(self, layers: int, steps: int | None) -> Objective:
        return tuned_exits(self._early(layers), self.warmup)

    def settings(self, layers: int) -> dict[str, Any]:
        return {"depths": tuple(self._early(layers))}
