"""Learning-rate schedules as pure functions of how far the training is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["cosine", "linear"]


def warmup_cosine(step: int, progress: float, warmup: int, floor: float = 0.02) -> float:
    """The share of the peak rate, in [0, 1]: linear over `warmup` steps, times a cosine from 1 at progress 0 to `floor` at progress 1.

    Progress is the used share of the budget (time or steps), so that the rate has fallen when the budget ends. warmup 0 starts at the peak.

    >>> warmup_cosine(0, 0.0, 4), warmup_cosine(3, 0.0, 4), round(warmup_cosine(99, 0.5, 4), 2), warmup_cosine(99, 1.0, 4)
    (0.25, 1.0, 0.51, 0.02)
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return rise * fall


def warmup_linear(step: int, progress: float, warmup: int) -> float:
    """The share of the peak rate, in [0, 1]: linear to 1 over `warmup` steps, then linear to 0 at progress 1.

    fairseq's polynomial decay of power 1, with which OFA is fine-tuned. Progress as in `warmup_cosine`; where the budget is steps, exact.

    >>> [warmup_linear(step, step / 10, 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    risen = warmup * progress / step if step else 0.0  # progress at the peak
    return min(1.0, max(0.0, (1 - progress) / (1 - risen))) if risen < 1 else 0.0


SCHEDULES: dict[Schedule, Callable[[int, float, int], float]] = {"cosine": warmup_cosine, "linear": warmup_linear}
