"""Kangaroo: an adapter after the first layers learns to say what the full, frozen model says next (Liu et al. 2024, arXiv:2404.18911).

Soft cross-entropy to the full model's law at the same positions, on the tokens that are learnt. The paper's data are answers of the model
itself or of better ones; a drafter is best trained on the model's own (`recipes/language/kangaroo.py`, which also drafts from a short
list of words).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DepthError
from ..heads import Exits
from ..lm.adapter import Adapter, AdapterConfig, save_adapter
from ..train.exits import Objective
from ..train.language.objectives import drafted
from .base import Teaching

PART = "adapter"


@dataclass(frozen=True)
class TEACHING(Teaching):
    """depth: layers before the adapter; the paper's 2 for 32 layers. ffn: a gated net in the adapter, as wide as the model's, which the
    paper has not."""

    depth: int = 2
    ffn: bool = False

    paper = "arXiv:2404.18911"
    about = "an adapter after the first layers learns what the full model says"
    frozen = True

    def exits(self, model: Any, layers: int) -> Exits:
        if not 1 <= self.depth < layers:
            raise DepthError(f"depth={self.depth} leaves nothing to draft for: this model has {layers} layers. Allowed: 1..{layers - 1}.")
        config, made = model.config.get_text_config(), super().exits(model, layers)
        made.parts[PART] = Adapter(AdapterConfig.of(config, self.depth, config.intermediate_size if self.ffn else 0))
        return made

    def objective(self, layers: int, steps: int | None) -> Objective:
        return drafted(self.depth, PART)

    def keep(self, exits: Exits, folder: Path) -> None:
        adapter: Any = exits.parts[PART]
        save_adapter(adapter, folder)
