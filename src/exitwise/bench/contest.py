"""Every method on one model and one user's data: fronts, areas, paired tests, exits, failures, and which one to take.

For each method a few settings are chosen on the calibration split; every one of them is then run on the judged split. Nothing is replayed:
what is compared is what ran. A method is a run of its own, one JSON file; a comparison that was stopped takes the finished ones over.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..calibrate.budget import Bar
from ..calibrate.front import pareto
from ..engine import Engine
from ..heads import Exits
from ..kept import fingerprint
from . import areas, record
from .advice import advice
from .cells import Cells, key_of
from .choosing import Tick
from .compare import difference, ratio
from .entries import FULL, Entry, Unfit
from .metrics import bootstrap
from .spans import ruled, span
from .subjects import Outcome, Subject

UNITS = ("etr", "macs")
CURVES = "method"


@dataclass(frozen=True)
class Wish:
    """keep, margin: what thresholds must keep on the calibration split (see `calibrate.budget.Bar`). points: settings of a method. timed:
    items on the clock (0: none). examples: failures that are shown. seed: of what is drawn."""

    keep: float = 0.99
    margin: float = 0.0
    points: int = 8
    timed: int = 24
    examples: int = 6
    seed: int = 0


@dataclass
class Contest:
    """One comparison: on what, what is wished, and where the runs go."""

    subject: Subject
    wish: Wish
    out: Path
    tick: Tick = lambda _: None
    name: str = ""

    def run(self, able: Sequence[Entry], unable: Sequence[Unfit] = (), **config: Any) -> dict[str, Any]:
        """The comparison's record, written under `out` as every method's is. config: what the record should also say."""
        subject = self.subject
        name = self.name or f"compare-{subject.kind}"
        told = {**config, "task": subject.kind, "data": subject.name, **vars(self.wish), "methods": [e.name for e in able]}
        depends = {
            "task": subject.key(), "weights": fingerprint(subject.model), "wish": vars(self.wish), "versions": record.versions(),
            "commit": record.commit(),
        }  # fmt: skip
        with record.run(self.out, name, told, self.wish.seed) as run:
            base = Cells(self.out, name, key_of(depends))
            full = base.once("full", lambda: self._both(Engine(subject.model, FULL)))
            found = {e.name: self._method(e, full, {**depends, "method": e.name, **_made_of(e)}, told) for e in able}
            self._compare(run, able, unable, full, found)
        base.done()
        return run

    # -- one method ---------------------------------------------------------------------------------------------------------------

    def _both(self, engine: Engine) -> dict[str, Any]:
        """A run over both splits, as plain values."""
        self.tick("full depth")
        return {split: _plain(self.subject.outcome(engine, split)) for split in ("calibration", "judged")}

    def _method(self, entry: Entry, full: dict[str, Any], depends: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        """The method's run: taken over where a finished one is in the folder, else made."""
        key, name = key_of(depends), f"{CURVES}-{self.subject.kind}-{_file_name(entry.name)}"
        for known in record.latest(self.out, name):
            if known["name"] == name and known.get("key") == key:
                self.tick(f"{entry.name}: taken over")
                return known
        cells = Cells(self.out, name, key)
        with record.run(self.out, name, {**told, "method": entry.name}, self.wish.seed) as run:
            run["key"] = key
            run["points"] = cells.once("chosen", lambda: self._chosen(entry, full["calibration"], cells))
            for place, point in enumerate(run["points"]):
                self.tick(f"{entry.name}: judged at {place + 1} of {len(run['points'])} settings")
                engine = entry.engine.with_settings(**_settings(point["settings"]))
                point["judged"] = cells.once(f"judged-{place}", partial(self._judged, engine))
            kept = [p for p in run["points"] if p["held"] and p["macs"] < 1 and not entry.control]
            run["chosen"] = min(range(len(kept)), key=lambda i: kept[i]["macs"], default=None)
            if run["chosen"] is not None:
                run["chosen"] = run["points"].index(kept[run["chosen"]])
            for place, point in enumerate(run["points"]):
                if place != run["chosen"]:
                    point["judged"] = {**point["judged"], "texts": []}  # nobody reads them, and they are long
        cells.done()
        return run

    def _judged(self, engine: Engine) -> dict[str, Any]:
        return _plain(self.subject.outcome(engine, "judged"))

    def _chosen(self, entry: Entry, full: Mapping[str, Any], cells: Cells) -> list[dict[str, Any]]:
        """Settings that no other one beats on the calibration split, cheap to dear, with what they cost and kept there."""
        bar = Bar(torch.tensor(_items(full)["marks"], dtype=torch.float64), self.wish.keep, self.wish.margin)
        settings = cells.once("span", lambda: span(self.subject, entry.engine, self.wish.points, cells.folder, self.tick))
        points = []
        for place, each in enumerate(settings):
            self.tick(f"{entry.name}: {place + 1} of {len(settings)} settings on the calibration items")
            points.append(cells.once(f"tried-{place}", partial(self._tried, entry.engine, each, bar, full["macs"])))
        best = pareto(np.array([p["cost"] for p in points]), np.array([p["quality"] for p in points]))
        kept = [points[place] for place in best if points[place]["cost"] < 1 or entry.control]
        if len(kept) <= self.wish.points:
            return kept
        places = sorted({round(i * (len(kept) - 1) / (self.wish.points - 1)) for i in range(self.wish.points)})
        return [kept[place] for place in places]

    def _tried(self, engine: Engine, settings: Mapping[str, Any], bar: Bar, macs: float) -> dict[str, Any]:
        out, size = self.subject.outcome(engine.with_settings(**_settings(settings)), "calibration"), self.subject.size("calibration")
        whole = macs + self.subject.stem * size
        return {
            "settings": dict(settings), "quality": statistics.fmean(out.marks), "cost": out.cost,
            "macs": (out.macs + self.subject.stem * size) / whole, "held": bar.held(torch.tensor(out.marks, dtype=torch.float64)),
        }  # fmt: skip

    # -- all together ---------------------------------------------------------------------------------------------------------------

    def _compare(
        self, run: dict[str, Any], able: Sequence[Entry], unable: Sequence[Unfit], full: Mapping[str, Any], found: Mapping[str, Any]
    ) -> None:
        """Fills in the record: all that a table, a report and a recommendation are drawn from."""
        subject, judged = self.subject, {**full["judged"], **_items(full["judged"])}
        run["task"] = {
            "kind": subject.kind, "metric": subject.metric, "folder": subject.name, "split": "judged", "skipped": [],
            "items": subject.size("judged"), "calibration": subject.size("calibration"),
        }  # fmt: skip
        held = bootstrap(judged["marks"], seed=self.wish.seed)
        stem = subject.stem * subject.size("judged")
        run["full"] = {
            "quality": {"value": held.mean, "low": held.low, "high": held.high}, "depth": judged["depth"],
            "macs": (judged["macs"] + stem) / subject.size("judged"),
        }  # fmt: skip
        apart = [e for e in able if not e.control or e.engine.method.sweep is not None]  # a point of hindsight is no front
        run["comparison"] = {
            unit: areas.compared({e.name: _front(found[e.name], judged, unit, stem) for e in apart}, self.wish.seed) for unit in UNITS
        }
        clock = self._clock(able, found)
        run["contest"] = [_line(e, found[e.name], judged, stem, clock, self.wish.seed) for e in able]
        run["unfit"] = [vars(each) for each in unable]
        run["failures"] = self._failures(run["contest"], found, judged)
        run["recommendation"] = advice(run)

    def _clock(self, able: Sequence[Entry], found: Mapping[str, Any]) -> dict[str, list[float]]:
        """Seconds per item of the untouched model ('') and of each method at what was chosen for it."""
        if not self.wish.timed:
            return {}
        engines = {
            e.name: e.engine.with_settings(**_settings(_chosen_point(found[e.name])["settings"]))
            for e in able if _chosen_point(found[e.name])
        }  # fmt: skip
        return self.subject.clock(engines, self.wish.timed, self.tick)

    def _failures(self, lines: Sequence[Mapping[str, Any]], found: Mapping[str, Any], full: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Items on which methods, at what was chosen for them, lose most against full depth; those that fail the most methods first."""
        picked = {line["name"]: _chosen_point(found[line["name"]])["judged"] for line in lines if line["chosen"]}
        picked = {name: {**one, **_items(one)} for name, one in picked.items()}
        lost = {
            place: {name: full["marks"][place] - one["marks"][place] for name, one in picked.items()} for place in range(len(full["marks"]))
        }
        worst = sorted(lost, key=lambda place: -sum(max(0.0, loss) for loss in lost[place].values()))
        cards = []
        for place in [p for p in worst if any(loss > 0 for loss in lost[p].values())][: self.wish.examples]:
            said = {name: {"text": picked[name]["texts"][place], "lost": loss} for name, loss in lost[place].items() if loss > 0}
            cards.append({**self.subject.card(place), "full": full["texts"][place], "methods": said})
        return cards


def _made_of(entry: Entry) -> dict[str, Any]:
    """What a method's run depends on besides the model and the data."""
    return {"settings": entry.engine.settings_dict(), "exits": None if entry.engine.exits is None else _digest(entry.engine.exits)}


def _digest(exits: Exits) -> dict[str, Any]:
    return {
        name: [list(value.shape), float(value.double().sum()), float(value.double().norm())] for name, value in exits.state_dict().items()
    }


def _file_name(name: str) -> str:
    return name.replace(" (", "-").replace(")", "")


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: lists of weights are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


PER_ITEM = ("marks", "paid", "whole")


def _plain(out: Outcome) -> dict[str, Any]:
    """What is kept of a run, for JSON; figures of items as one line each."""
    items = {name: " ".join(f"{value:.7g}" for value in getattr(out, name)) for name in PER_ITEM}
    return {**items, "macs": out.macs, "depth": out.depth, "exits": out.exits, "texts": out.texts}


def _items(kept: Mapping[str, Any]) -> dict[str, list[float]]:
    """The figures of items of what `_plain` kept: marks, paid, whole."""
    return {name: [float(value) for value in kept[name].split()] for name in PER_ITEM}


def _chosen_point(found: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that was chosen for a method; empty where none was."""
    return {} if found["chosen"] is None else dict(found["points"][found["chosen"]])


def _front(found: Mapping[str, Any], full: Mapping[str, Any], unit: str, stem: float) -> areas.Front:
    """A method's front on the judged items. MACs of a run are shared out among its items as their layers are."""
    runs = [{"macs": point["judged"]["macs"], **_items(point["judged"])} for point in found["points"]]
    if unit == "etr":
        paid, whole = [r["paid"] for r in runs], [r["whole"] for r in runs]
    else:
        paid = [np.array(r["paid"]) * ((r["macs"] + stem) / sum(r["paid"])) for r in runs]
        whole = [np.array(full["paid"]) * ((full["macs"] + stem) / sum(full["paid"])) for _ in runs]
    return areas.Front.of([r["marks"] for r in runs], paid, whole, full["marks"])


def _line(
    entry: Entry, found: Mapping[str, Any], full: Mapping[str, Any], stem: float, clock: Mapping[str, Sequence[float]], seed: int
) -> dict[str, Any]:
    """A method's line: its points, and what was chosen for it with all that it kept and saved on the judged items."""
    points = []
    for point in found["points"]:
        one = {**point["judged"], **_items(point["judged"])}
        points.append({
            "settings": point["settings"], "held": point["held"], "quality": statistics.fmean(one["marks"]),
            "etr": 1 - sum(one["paid"]) / sum(one["whole"]), "macs_saved": 1 - (one["macs"] + stem) / (full["macs"] + stem),
            "depth": one["depth"],
        })  # fmt: skip
    line: dict[str, Any] = {
        "name": entry.name, "method": entry.engine.method_name, "control": entry.control, "note": entry.note, "points": points,
        "trained": entry.engine.exits is not None, "streams": ruled(entry.engine), "chosen": None, "file": found.get("file"),
    }  # fmt: skip
    if found["chosen"] is None:
        return line
    one = {**_chosen_point(found)["judged"], **_items(_chosen_point(found)["judged"])}
    held = bootstrap(one["marks"], seed=seed)
    line["chosen"] = {
        **points[found["chosen"]], "exits": one["exits"], "quality": {"value": held.mean, "low": held.low, "high": held.high},
        "kept": ratio(one["marks"], full["marks"], seed).to_dict(), "lost": difference(full["marks"], one["marks"], seed).to_dict(),
    }  # fmt: skip
    if clock.get(entry.name):
        mine, theirs = clock[entry.name], clock[""]
        saved = statistics.median(1 - a / b for a, b in zip(mine, theirs, strict=True))
        line["chosen"] |= {"ms": 1e3 * statistics.median(mine), "ms_full": 1e3 * statistics.median(theirs), "time_saved": saved}
    return line
