"""Learning-rate schedules as pure functions of how far the training is."""

from __future__ import annotations

import math


def warmup_cosine(step: int, progress: float, warmup: int, floor: float = 0.02) -> float:
    """The share of the peak rate, in [0, 1]: linear over `warmup` steps, times a cosine from 1 at progress 0 to `floor` at progress 1.

    Progress is the used share of the budget (time or steps), so that the rate has fallen when the budget ends. warmup 0 starts at the peak.

    >>> warmup_cosine(0, 0.0, 4), warmup_cosine(3, 0.0, 4), round(warmup_cosine(99, 0.5, 4), 2), warmup_cosine(99, 1.0, 4)
    (0.25, 1.0, 0.51, 0.02)
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return rise * fall
