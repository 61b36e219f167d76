"""How a training runs, and how far it has come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exitwise.errors import KnobError

from .schedules import SCHEDULES, Schedule


@dataclass(frozen=True)
class Settings:
    """How to train. The budget is `seconds` or `steps`, whichever ends first; give at least one."""

    folder: Path
    seconds: float | None = None
    steps: int | None = None
    lr: float = 7e-4
    warmup: int = 500
    schedule: Schedule = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1  # batches whose gradients are averaged for one step
    bf16: bool = False
    seed: int = 0
    log_every: int = 20
    save_every_s: float = 180.0
    validate_every_s: float = 600.0
    average: float = 0.0  # decay of the moving average of the weights, which is then what is validated and exported; 0: none
    patience: int | None = None  # validations without a better "loss" before stopping; None never stops early
    learnt: Mapping[str, Any] = field(default_factory=dict)  # what else the run is made of (data, recipe); a resumed run must have the same

    def __post_init__(self) -> None:
        if self.seconds is None and self.steps is None:
            raise KnobError("the training has no end. Give seconds, steps or both.")
        for name in ("seconds", "steps", "lr", "clip", "accumulate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise KnobError(f"{name} is {value}, but must be above 0.")
        if not 0 <= self.average < 1:
            raise KnobError(f"average is {self.average}. Allowed: 0 (none) to below 1, such as 0.999.")
        if self.schedule not in SCHEDULES:
            raise KnobError(f"schedule {self.schedule!r} is unknown. Allowed: {', '.join(SCHEDULES)}.")


@dataclass
class Progress:
    """What a resumed run has to know: steps done, seconds used, the best validation and how long ago it was."""

    step: int = 0
    used_s: float = 0.0
    best: float = math.inf
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
