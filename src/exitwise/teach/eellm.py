"""EE-LLM and EE-Tuning: exits with a norm, and a gated net where one is asked for, of their own before the model's head (Chen et al. 2024,
arXiv:2312.04916; Pan et al. 2024, arXiv:2402.00518).

Tuning freezes the model and trains the exits alone, each with the same weight unless it is given. They begin as the identity: a gain of
1, and a net that adds nothing. Differs: the head is always the model's own, with its final norm; untied heads are not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import KnobError
from ..heads import EXITS_FILE, Exits
from ..train.exits import Objective
from ..train.language.objectives import tuned_exits
from ..train.language.weights import checked
from .base import Teaching


class OwnExit(nn.Module):
    """state + net(norm(state)), then a gain: what an exit reads before the model's norm and head. States (..., width)."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        if inner:
            self.norm = nn.RMSNorm(width, eps)
            self.gate, self.up, self.down = (
                nn.Linear(width, inner, bias=False),
                nn.Linear(width, inner, bias=False),
                nn.Linear(inner, width, bias=False),
            )
            nn.init.zeros_(self.down.weight)
        self.inner = inner

    def forward(self, state: Tensor) -> Tensor:
        if self.inner:
            normed = self.norm(state)
            state = state + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return state * self.gain


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
        depths = self.depths or tuple(sorted({max(1, layers // 4), max(1, layers // 2)}))
        shares = self.weights or (1.0,) * len(depths)
        if len(shares) != len(depths):
            raise KnobError(f"{len(shares)} weights were given for {len(depths)} depths. Give one for each.")
        checked(depths, layers - 1)
        return dict(zip(depths, shares, strict=True))

    def exits(self, model: Any, layers: int) -> Exits:
        config, made = model.config.get_text_config(), super().exits(model, layers)
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size if self.inner < 0 else self.inner
        for depth in self._early(layers):
            made.parts[f"exit {depth}"] = OwnExit(config.hidden_size, inner, getattr(config, "rms_norm_eps", 1e-6))
        return made

    def objective(self, layers: int, steps: int | None) -> Objective:
        return tuned_exits(self._early(layers), self.warmup)

    def keep(self, exits: Exits, folder: Path) -> None:
        """The exits' weights, named by their depths, in exits.safetensors."""
        save_file({name: value.detach().contiguous() for name, value in exits.state_dict().items()}, folder / EXITS_FILE)
