"""Thresholds for a wanted cost: the best on the calibration items among those that save as much, or those of wanted mean depths.

A paper's table says what was kept at which expected time reduction. To stand beside it, one is asked for the same cost.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calibrate.budget import NEVER, depths_at, proposals
from ..calibrate.ledger import Ledger, sweep, thresholds_of
from ..cost import etr
from ..engine import Engine
from .ask import Asked, Asker
from .choosing import Tick, alone, ledger, live, replayable, tellable
from .compare import best_at_cost
from .recording import recorded

GRID = 200  # thresholds looked at for a mean depth
SPREAD = 13  # mean depths proposed per stream for a cost
FINE = 65  # ... where a single stream is judged
NEAR = 0.03  # of ETR: settings foretold to save so nearly what is wanted are worth a run
CLOSE = 0.01  # of ETR: a live run's cost is only foretold, and a batch's captions change with its exits


@dataclass(frozen=True)
class Chosen:
    """Thresholds, and what they do on the calibration items. tried: settings that were looked at."""

    settings: dict[str, float]
    quality: float
    etr: float
    tried: int = 1

    @staticmethod
    def best(entries: Sequence[Mapping[str, Any]], wanted: float, tried: int) -> Chosen:
        """The best of those that save what is wanted and not much more, else of all that save it; where none does, what saves most."""
        near = [entry for entry in entries if entry["etr"] <= wanted + NEAR]
        for some in (near, entries):
            place = best_at_cost([(1 - entry["etr"], entry["quality"]) for entry in some], 1 - wanted)
            if place is not None:
                return Chosen(dict(some[place]["settings"]), some[place]["quality"], some[place]["etr"], tried)
        most = max(entries, key=lambda entry: entry["etr"])
        return Chosen(dict(most["settings"]), most["quality"], most["etr"], tried)


class AtCost:
    """Chooses for one engine on one set of items. tied: one threshold for both streams of the encoder. trials: live runs for a cost,
    where answers cannot be replayed on a ledger. parts: where a ledger is kept, part by part, so that its recording can be stopped."""

    def __init__(
        self,
        asker: Asker,
        kind: str,
        engine: Engine,
        items: Sequence[Asked],
        tied: bool = False,
        trials: int = 8,
        tick: Tick = lambda _: None,
        parts: Path | None = None,
    ) -> None:
        self.asker, self.kind, self.items, self.tied, self.trials, self.tick = asker, kind, items, tied, trials, tick
        self.parts = parts
        self.engine = engine.with_settings(**dict.fromkeys(self._streams(engine), NEVER))
        self.least: int = engine.settings_dict().get("minimum", 1)
        self._runs: list[dict[str, Any]] = []

    @staticmethod
    def _streams(engine: Engine) -> list[str]:
        ruled = engine.plan().rules  # a method may have a knob for a stream that it cannot judge in this model
        return [stream for stream in engine.layers if stream in engine.method.calibrated and stream in ruled]

    def at(self, wanted: float) -> Chosen:
        """The best thresholds that save `wanted` (ETR, 0..1)."""
        if self._book is not None:
            return Chosen.best(self._sweep, wanted, len(self._sweep))
        self._try(wanted)
        return Chosen.best(self._runs, wanted - CLOSE, len(self._runs))

    def at_depths(self, wanted: Mapping[str, float]) -> dict[str, float]:
        """The thresholds under which the encoder's streams run these mean depths, as nearly as their similarities allow."""
        found = {}
        for stream, target in wanted.items():
            sure, layers = self._recorded[stream], self.engine.layers[stream]
            if target >= layers:
                found[stream] = NEVER
                continue
            grid = thresholds_of(sure, layers, GRID, self.least)
            found[stream] = min(grid, key=lambda t: abs(float(depths_at(sure, t, self.least).double().mean()) - target))
        return found

    @cached_property
    def _book(self) -> Ledger | None:
        if not (tellable(self.asker, self.kind, self.items) and replayable(self.engine)):
            return None
        if self.parts is not None:
            return recorded(self.asker, self.engine, [one.item for one in self.items], self.parts, self.tick)
        return ledger(self.asker, self.engine, self.items, tick=self.tick)

    @cached_property
    def _sweep(self) -> list[dict[str, Any]]:
        assert self._book is not None
        return sweep(self._book, minimum=self.least, tied=self.tied)

    @cached_property
    def _recorded(self) -> dict[str, Tensor]:
        """Similarities of the items at full depth."""
        self.tick("similarities at full depth")
        return self.asker.ask(alone(self.engine).recording(), self.items, 32).trace.sureness

    def _try(self, wanted: float) -> None:
        """Live runs of settings that should save about `wanted`, of unlike shares for the streams."""
        how = live(self.asker, self.kind, self.tick)
        for settings in self._proposed(wanted):
            if any(run["settings"] == settings for run in self._runs):
                continue
            texts, trace = how["predict"](self.engine.with_settings(**settings), self.items)
            quality = statistics.fmean(how["quality"](texts, self.items))
            self._runs.append({"settings": settings, "quality": quality, "etr": etr(trace)})

    def _proposed(self, wanted: float) -> list[dict[str, float]]:
        """`trials` settings near the wanted cost by their foretold mean depths, spread over the depths of the encoder's streams."""
        layers, judged = self.engine.layers, self._streams(self.engine)
        options = {
            s: proposals(self._recorded[s], layers[s], self.least, SPREAD if len(judged) > 1 else FINE)
            if s in judged and s in self._recorded
            else [(NEVER, float(layers[s]))]
            for s in layers
        }
        names = list(options)
        most = statistics.fmean(layers[s] for s in names if s != "decoder") + layers["decoder"]
        found: list[tuple[float, tuple[int, ...], dict[str, float]]] = []
        for choice in itertools.product(*options.values()):
            depths = {s: depth for s, (_, depth) in zip(names, choice, strict=True)}
            settings = {s: threshold for s, (threshold, _) in zip(names, choice, strict=True) if s in judged}
            encoder = [depth for s, depth in depths.items() if s != "decoder"]
            if self.tied and len({settings[s] for s in judged if s != "decoder"}) > 1:
                continue
            saved = 1 - (statistics.fmean(encoder) + depths["decoder"]) / most
            found.append((abs(saved - wanted), tuple(round(d) for d in encoder), settings))
        found.sort(key=lambda each: each[0])
        if judged == ["decoder"]:  # one threshold: those beside the foretold one
            return [settings for _, _, settings in found[: self.trials]]
        nearest: dict[tuple[int, ...], tuple[float, dict[str, float]]] = {}
        for off, shape, settings in found:
            nearest.setdefault(shape, (off, settings))
        close = [shape for shape, (off, _) in nearest.items() if off <= NEAR] or list(nearest)[: self.trials]
        close.sort()
        places = {round(i * (len(close) - 1) / max(1, self.trials - 1)) for i in range(self.trials)}
        return [nearest[close[place]][1] for place in sorted(places)]
