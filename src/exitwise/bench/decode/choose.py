"""Settings chosen on calibration prompts: the fastest of those whose tokens are the whole model's own often enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...engine import Engine
from .run import Asked, Tick, Warm, answered
from .ways import PLAIN, ours, plain

THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5)


def fastest(
    model: Any, engine: Engine, grid: Sequence[Mapping[str, Any]], prompts: Sequence[Asked], tokens: int, keep: float, tick: Tick
) -> tuple[Engine | None, list[dict[str, Any]]]:
    """(the fastest setting that keeps so much agreement, or None; what each of the grid gave).

    A setting's figures are those of all prompts together, in turn with the others. Agreement is that of `run`.
    """
    found = []
    warm = Warm(prompts[0].inputs)
    ways = [plain(model), *(ours(str(i), engine.with_settings(**knobs)) for i, knobs in enumerate(grid))]
    told = []
    for place, one in enumerate(prompts):
        tick(f"{engine.method_name}: {len(grid)} settings on calibration prompt {place + 1} of {len(prompts)}")
        told.append(answered(model, one, ways, tokens, warm)["ways"])
    plain_speed = _speed([each[PLAIN] for each in told])
    for i, knobs in enumerate(grid):
        mine = [each[str(i)] for each in told]
        written = sum(len(each["tokens"]) for each in mine)
        agreement = sum(each["agrees"] * len(each["tokens"]) for each in mine) / written
        found.append({"settings": dict(knobs), "agreement": agreement, "over_generate": _speed(mine) / plain_speed})
    able = [each for each in found if each["agreement"] >= keep]
    if not able:
        return None, found
    best = max(able, key=lambda each: float(each["over_generate"]))
    return engine.with_settings(**best["settings"]), found


def _speed(told: Sequence[Mapping[str, Any]]) -> float:
    return sum(len(each["tokens"]) for each in told) / sum(each["seconds"] for each in told)
