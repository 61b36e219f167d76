"""Settings of a method that span the costs: a few, from the cheapest to nearly full depth, chosen on the calibration split alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibrate.budget import depths_at
from ..engine import Engine
from .choosing import Tick
from .subjects import Subject

LOOKED = 400  # thresholds looked at
NEAREST = 5  # settings without thresholds that are run for a wanted cost


def ruled(engine: Engine) -> list[str]:
    """The streams of this model whose thresholds the method has and obeys."""
    return [s for s in engine.layers if s in engine.method.calibrated and s in engine.plan().rules]


def span(subject: Subject, engine: Engine, points: int, parts: Path, tick: Tick = lambda _: None) -> list[dict[str, Any]]:
    """At most about `points` settings (for a method without thresholds more: the best are found when they are run), cheap to dear.

    parts: a folder for what takes long to record.
    """
    method, streams = engine.method, ruled(engine)
    if method.sweep is not None:
        return swept(method.sweep(engine.layers), engine, points)
    if not streams:
        return [{}]
    if len(streams) > 1:
        return subject.saving(engine, wanted(points), parts, tick)
    tick("similarities at full depth")
    sure = subject.outcome(engine.recording(), "calibration").trace.sureness[streams[0]]
    least = int(engine.settings_dict().get("minimum", 1))
    knob = next(each for each in method.knobs if each.name == streams[0])
    lowest = -1.0 if knob.low is None else knob.low
    return [{streams[0]: t} for t in thresholds(sure.flatten(0, -2), points, least, lowest)]


def wanted(points: int) -> list[float]:
    """Costs, as shares of full depth's layers, from a sixth to nearly all."""
    return [1 / 6 + (0.95 - 1 / 6) * place / max(points - 1, 1) for place in range(points)]


def thresholds(sureness: Tensor, points: int, minimum: int = 1, lowest: float = -1.0) -> list[float]:
    """Thresholds (one for each of `points` mean depths as far apart as they can be) that lie between measured values, so that no row stands
    on one. sureness: (rows, layers); lowest: that is allowed; cheap to dear, never full depth."""
    layers = sureness.shape[-1]
    values = sureness[:, minimum - 1 : layers - 1].flatten().double()
    values = torch.unique(values[~values.isnan()])
    if not len(values):
        return []
    middle = torch.cat([(values[:1] - 1e-6).clamp(min=lowest), (values[1:] + values[:-1]) / 2])
    middle = middle[1:] if middle[0] == values[0] else middle  # nothing lies below it: a streak of none is 0
    if not len(middle):
        return []
    looked = sorted(set(middle[torch.linspace(0, len(middle) - 1, min(LOOKED, len(middle))).long()].tolist()))
    depth = {}
    for threshold in looked:
        found = depths_at(sureness.double(), threshold, minimum).double()
        depth[threshold] = float(found[found > 0].mean())
    low = min(depth.values())
    targets = [low + (layers - low) * place / points for place in range(points)]
    return sorted({min(depth, key=lambda t: abs(depth[t] - target)) for target in targets}, key=lambda t: depth[t])


def swept(known: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]], engine: Engine, points: int) -> list[dict[str, Any]]:
    """All settings of a short sweep; of a long one, for each wanted cost the nearest from below, spread over the streams."""
    kinds = engine.streams
    encoder, decoder = ([s for s, kind in kinds.items() if (kind == "decoder") is last] for last in (False, True))

    def cost(depths: Mapping[str, float]) -> float:
        return sum(depths[s] for s in encoder) / max(len(encoder), 1) + sum(depths[s] for s in decoder)

    priced = sorted(((cost(depths) / cost(engine.layers), dict(settings)) for settings, depths in known), key=lambda each: each[0])
    below = [each for each in priced if each[0] < 1 - 1e-9]
    if len(below) <= 2 * points:
        return [settings for _, settings in below]
    chosen: list[dict[str, Any]] = []
    for target in wanted(points):
        near = [settings for price, settings in below if target - 0.5 / points < price <= target + 1e-9]
        places = {round(i * (len(near) - 1) / max(NEAREST - 1, 1)) for i in range(NEAREST)} if near else set()
        chosen += [near[place] for place in sorted(places) if near[place] not in chosen]
    return chosen
