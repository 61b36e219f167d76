"""The cheapest thresholds that keep the asked share of quality: a ledger of similarities proposes settings, live runs decide.

The ledger of a full-depth pass says, for every stream, at which depth each row would leave under any threshold. From it come a handful of
thresholds per stream that differ in mean depth. Each is first run alone; then combinations are run from the cheapest on whose losses, added
up, still promise enough. What is chosen was always run, never only predicted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..cost import etr
from ..errors import CalibrationError
from ..trace import Trace

NEVER = 1.0


@dataclass(frozen=True)
class Outcome:
    """What one setting did on the calibration rows."""

    outputs: Sequence[Any]
    trace: Trace


@dataclass(frozen=True)
class Calibration:
    """What was asked, what was found. tried: every setting that was run, with its quality and ETR."""

    keep: float
    rows: int
    quality_full: float
    quality: float
    etr: float
    settings: dict[str, float]
    tried: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Calibration:
        """The inverse of to_dict."""
        return Calibration(**body)


def depths_at(sureness: Tensor, threshold: float, minimum: int = 1) -> Tensor:
    """Replay: the depth of every row for a threshold, from similarities (..., layers). NaN rows (nothing computed) give 0."""
    layers = sureness.shape[-1]
    ready = sureness > threshold
    if threshold >= NEVER:
        ready = torch.zeros_like(ready)
    ready[..., : minimum - 1] = False
    ready[..., -1] = True
    depth = ready.int().argmax(-1) + 1
    assert int(depth.max()) <= layers
    return torch.where(sureness.isnan().all(-1), 0, depth)


def proposals(sureness: Tensor, layers: int, minimum: int, count: int = 5) -> list[tuple[float, float]]:
    """(threshold, mean depth), deepest first: thresholds from the ledger whose mean depths are spread over minimum..layers."""
    values = sureness[..., :-1].flatten()
    values = values[~values.isnan()]
    if not len(values):
        return [(NEVER, float(layers))]
    grid = sorted({round(float(q), 6) for q in torch.quantile(values.double(), torch.linspace(0, 1, 65).double())})
    found: dict[int, tuple[float, float]] = {}
    for threshold in grid:
        depth = depths_at(sureness, threshold, minimum).double()
        mean = float(depth[depth > 0].mean())
        slot = round((mean - minimum) / max(layers - minimum, 1) * (count - 1))
        wanted = minimum + slot * (layers - minimum) / max(count - 1, 1)
        if slot not in found or abs(mean - wanted) < abs(found[slot][1] - wanted):
            found[slot] = (threshold, mean)
    kept = [found[s] for s in sorted(found, reverse=True) if found[s][1] < layers]
    return [(NEVER, float(layers)), *kept]


def search(
    run: Callable[[dict[str, Any], bool], Outcome],
    rows: Sequence[Any],
    streams: Mapping[str, int],
    keep: float,
    quality: Callable[[Sequence[Any], Sequence[Any]], float] | None = None,
    trials: int = 24,
    minimum: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """See `Engine.calibrate`. run: (settings, record) -> Outcome."""
    if not rows:
        raise CalibrationError("There are no calibration rows. Give a few hundred.")
    if not 0 < keep <= 1:
        raise CalibrationError(f"keep={keep} is not a share of quality. Allowed: above 0, at most 1.")
    full = run(dict.fromkeys(streams, NEVER), True)
    judge = quality or (lambda outputs, _: sum(a == b for a, b in zip(outputs, full.outputs, strict=True)) / len(rows))
    best = judge(full.outputs, rows)
    if best <= 0:
        raise CalibrationError(f"At full depth the quality is {best}: there is nothing to keep a share of. Check references and metric.")
    tried: list[dict[str, Any]] = []

    def attempt(settings: dict[str, float]) -> dict[str, Any]:
        out = run(settings, False)
        entry = {"settings": settings, "quality": judge(out.outputs, rows), "etr": etr(out.trace)}
        tried.append(entry)
        if progress is not None:
            progress(len(tried), trials)
        return entry

    proposed = {s: proposals(full.trace.sureness[s], n, minimum) for s, n in streams.items() if s in full.trace.sureness}
    base = dict.fromkeys(streams, NEVER)
    loss = {s: {NEVER: 0.0} for s in proposed}
    for stream, options in proposed.items():
        for threshold, _ in options[1:]:
            entry = attempt({**base, stream: threshold})
            loss[stream][threshold] = best - entry["quality"]
            if entry["quality"] < best * keep - 2 * (1 - keep) * best and entry["quality"] < 0.9 * best:
                break  # deeper cuts of this stream can only lose more
    combos = _combos(proposed, loss, streams)
    room = best * (1 - keep)
    for promised, depths, settings in combos:
        if len(tried) >= trials:
            break
        if promised <= room + 0.5 * room and not any(t["settings"] == {**base, **settings} for t in tried):
            attempt({**base, **settings})
        if any(t["quality"] >= keep * best and t["settings"] == {**base, **settings} for t in tried) and depths:
            break
    good = [t for t in tried if t["quality"] >= keep * best]
    fallback: dict[str, Any] = {"settings": base, "quality": best, "etr": etr(full.trace)}
    chosen = max(good, key=lambda t: t["etr"], default=fallback)
    return Calibration(keep, len(rows), best, chosen["quality"], chosen["etr"], dict(chosen["settings"]), tried)


def _combos(
    proposed: Mapping[str, list[tuple[float, float]]], loss: Mapping[str, Mapping[float, float]], streams: Mapping[str, int]
) -> list[tuple[float, float, dict[str, float]]]:
    """(loss promised, cost, settings) of all combinations of thresholds that were run alone, cheapest first."""
    names = list(proposed)
    out = []
    for choice in itertools.product(*([o for o in proposed[s] if o[0] in loss[s]] for s in names)):
        settings = {s: t for s, (t, _) in zip(names, choice, strict=True)}
        encoder = [d for s, (_, d) in zip(names, choice, strict=True) if s != "decoder"]
        decoder = [d for s, (_, d) in zip(names, choice, strict=True) if s == "decoder"]
        cost = sum(encoder) / max(len(encoder), 1) + sum(decoder)
        promised = sum(max(0.0, loss[s][t]) for s, t in settings.items())
        out.append((promised, cost, settings))
    return sorted(out, key=lambda c: c[1])
