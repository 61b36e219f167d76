"""Measuring ways on a task: quality with its interval, depths, ETR in three readings, counted MACs, layer calls, and wall-clock
taken in turn."""

from __future__ import annotations

import base64
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..cost import count_macs, etr_readings
from ..engine import Engine
from ..errors import InputError
from ..kept import SETTINGS_FILE, fingerprint
from ..trace import Trace
from . import captioned, record, tasks
from .ask import Asked, Asker, Said, load_pair, scores
from .choosing import Tick
from .compare import ratio
from .journal import Journal
from .metrics import bootstrap
from .pictures import stamp
from .ways import Request, Way, choose, histogram, kept

READINGS = {"streams": "mean", "deepest": "max", "tokens": "tokens"}
STEM = "model.encoder.stem"


@dataclass(frozen=True)
class Setup:
    """How a task is judged. model: a folder of a unified model (None: the shipped one). exits: a folder of `Engine.save`, judged
    as they are
    (None: calibrate). keep, margin, preset, budget: see `ways.Request`. beams: for captions. timed: items on the clock.
    gallery: pictures in the report. official: the official scorers of captions too (see `official`)."""

    model: str | None = None
    exits: str | Path | None = None
    out: Path = Path("results")
    name: str | None = None
    seed: int = 0
    keep: float = 0.99
    margin: float = 0.0
    preset: str | None = None
    budget: float | None = None
    beams: int = 1
    timed: int = 24
    gallery: int = 12
    official: bool = False
    tick: Tick = lambda _: None


def judge(
    kind: str,
    folder: str | Path | None = None,
    split: str | None = None,
    calibration: str | Path | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    add_caption: bool = False,
    **setup: Any,
) -> dict[str, Any]:
    """Judge a unified model on FOLDER's split (None: the embedded test sample) at full depth and with exits; one JSON run.

    Thresholds are chosen on `calibration` (a folder, or a split of FOLDER; default the embedded calibration sample). setup: fields of
    `Setup`. Returns the record, which is written under `out` too. Raises InputError for data that cannot be used.
    """
    asked = Setup(**setup)
    if asked.official:
        captioned.wanted(kind)
    task = tasks.sample(kind, "test") if folder is None else tasks.load(kind, folder, split, skip_bad, limit, add_caption=add_caption)
    held = None
    if asked.exits is None:
        held = tasks.sample(kind, "calibration") if calibration is None else _calibration(kind, folder, calibration, skip_bad, add_caption)
    return judge_on(task.first(limit), held, "embedded sample" if folder is None else tasks.title(folder), asked)


def judge_on(task: tasks.Task, held: tasks.Task | None, data: str, setup: Setup) -> dict[str, Any]:
    """The same for tasks that are loaded already: judged on `task`, calibrated on `held` (None: exits are given). data: how the
    record names them."""
    kind = task.kind
    loaded, processor = load_pair(setup.model)
    asker = Asker(loaded, processor, setup.beams)
    config = {
        "model": setup.model or "shipped",
        "task": kind,
        "data": data,
        "beams": setup.beams,
        "keep": setup.keep,
        "margin": setup.margin,
        "budget": setup.budget,
        "preset": setup.preset,
    }
    with record.run(setup.out, setup.name or f"bench-{kind}", config, setup.seed) as run:
        items = asker.prepare(task.items, lambda: setup.tick("images"))
        journal = _journal(asker, task, held, config, setup)
        if journal.batches:
            setup.tick(f"{journal.batches} batches of a run that was stopped are taken over")
        if held is None:
            if setup.exits is None:
                raise InputError("There is nothing to choose exits on. Give exits, or items to calibrate on.")
            ways = kept(asker, Path(setup.exits))
            known = ways[1].engine.calibration
            found: dict[str, Any] = {} if known is None else {**known.to_dict(), "tried": len(known.tried)}
        else:
            ways, found = journal.ways(asker, partial(_chosen, asker, held, setup))
        run["task"] = {
            "kind": kind, "metric": task.metric, "folder": data, "split": task.split,
            "items": len(items), "skipped": [f"{f.where}: {f.what}" for f in task.faults],
        }  # fmt: skip
        run["sweep"] = found.pop("sweep", {})
        run["calibration"] = {"items": found["rows"], "chosen": "before" if setup.exits else "now", **found} if found else None
        measure(run, asker, kind, items, ways, setup, journal)
    journal.done()
    return run


def _chosen(asker: Asker, held: tasks.Task, setup: Setup) -> tuple[list[Way], dict[str, Any]]:
    """The ways, chosen on the held items."""
    items = asker.prepare(held.items, lambda: setup.tick("images"))
    wish = Request(keep=setup.keep, margin=setup.margin, seed=setup.seed, preset=setup.preset, budget=setup.budget)
    return choose(asker, held.kind, items, wish, setup.tick)


def _journal(asker: Asker, task: tasks.Task, held: tasks.Task | None, config: dict[str, Any], setup: Setup) -> Journal:
    """The journal of this run: what its answers depend on."""
    exits = None if setup.exits is None else sorted((str(f), f.read_text("utf-8")) for f in Path(setup.exits).rglob(SETTINGS_FILE))
    asked = [[(i.prompt, i.references, i.candidates, stamp(i.image)) for i in t.items] for t in (task, held) if t is not None]
    depends = {
        **config,
        "seed": setup.seed,
        "weights": fingerprint(asker.model),
        "versions": record.versions(),
        "commit": record.commit(),
        "exits": exits,
        "items": asked,
    }
    return Journal(setup.out, setup.name or f"bench-{task.kind}", depends)


def measure(
    run: dict[str, Any], asker: Asker, kind: str, items: Sequence[Asked], ways: Sequence[Way], setup: Setup, journal: Journal | None = None
) -> None:
    """Fill a run's record: rows, saturation, gallery, thresholds. journal: keeps what was said, for a run that is stopped."""
    said, macs = {}, {}
    for way in ways:
        setup.tick(f"quality: {way.label}")
        said[way.key], total = _said(asker, way, items) if journal is None else journal.ask(asker, way, items)
        macs[way.key] = total / len(items)
    stem = _stem_macs(asker, items)
    clock = _times(asker, items[:: max(1, len(items) // setup.timed)][: setup.timed], ways, setup.tick)
    points = {key: scores(kind, s.texts, [a.item for a in items]) for key, s in said.items()}
    run["rows"] = [_row(way, said[way.key], points, macs, stem, clock, setup.seed) for way in ways]
    if kind == "caption":
        setup.tick("other scorers of captions")
        captioned.fill(run, {key: one.texts for key, one in said.items()}, [a.item.references for a in items], setup.official)
    run["groups"] = groups([a.item for a in items], said, points)
    run["thresholds"] = (
        {k: v for k, v in ways[1].engine.settings_dict().items() if k in said[ways[1].key].trace.layers} if len(ways) > 1 else {}
    )
    setup.tick("saturation")
    run["saturation"] = saturation(asker, items)
    run["gallery"] = [_card(items[i], i, said, points) for i in _spread(len(items), setup.gallery)]


def _said(asker: Asker, way: Way, items: Sequence[Asked]) -> tuple[Said, float]:
    """What the way says of all items, and its MACs without the stem."""
    with count_macs() as counted:
        said = asker.ask(way.engine, items)
    return said, counted.total


def _row(
    way: Way, said: Said, points: dict[str, list[float]], macs: dict[str, float], stem: float, clock: dict[str, list[float]], seed: int
) -> dict[str, Any]:
    trace, mine, first = said.trace, points[way.key], next(iter(points))
    held, share = bootstrap(mine, seed=seed), ratio(mine, points[first], seed)
    counts = {s: [round(share * int((trace.depth[s] > 0).sum())) for share in shares] for s, shares in histogram(trace).items()}
    median = {key: statistics.median(times) for key, times in clock.items()}
    lower, _, upper = statistics.quantiles(clock[way.key], n=4)
    pairs = [1 - a / b for a, b in zip(clock[way.key], clock[first], strict=True)]
    return {
        "key": way.key, "label": way.label, "method": way.engine.method_name, "settings": way.settings, "items": len(mine),
        "layers": trace.layers,
        "depth": {s: trace.mean_depth(s) for s in trace.depth}, "quality": {"value": held.mean, "low": held.low, "high": held.high},
        "kept": share.to_dict(), "etr": _readings(trace),
        "macs": macs[way.key] + stem, "macs_saved": 1 - (macs[way.key] + stem) / (macs[first] + stem), "stem_macs": stem,
        "calls": sum(trace.rows.values()) / len(mine), "head_calls": trace.head_calls, "exits": counts,
        "wallclock_ms": {"median": 1e3 * median[way.key], "q1": 1e3 * lower, "q3": 1e3 * upper, "items": len(pairs)},
        "wallclock_saved": statistics.median(pairs),
    }  # fmt: skip


def groups(items: Sequence[tasks.Item], said: dict[str, Said], points: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Group of items -> how many, and each way's mean quality and mean depths there; nothing where all items are of one group."""
    names = sorted({item.group for item in items})
    out: dict[str, dict[str, Any]] = {}
    for name in names if len(names) > 1 else []:
        places = [place for place, item in enumerate(items) if item.group == name]
        ways = {}
        for key, one in said.items():
            depths = {s: d.view(len(items), -1)[places] for s, d in one.trace.depth.items()}
            ways[key] = {
                "quality": statistics.fmean(points[key][place] for place in places),
                "depth": {s: float(d[d > 0].double().mean()) for s, d in depths.items()},
            }
        out[name] = {"items": len(places), "ways": ways}
    return out


def _readings(trace: Trace) -> dict[str, float]:
    found = etr_readings(trace)
    return {name: found[reading] for name, reading in READINGS.items()}


def _stem_macs(asker: Asker, items: Sequence[Asked]) -> float:
    """MACs of the stem per item, counted once for each grid."""
    grids = {a.grid: a.pixels for a in items}
    cost = {}
    for grid, pixels in grids.items():
        with torch.no_grad(), count_macs() as counted:
            asker.model.model.stem(pixels)
        cost[grid] = counted.total
    return sum(cost[a.grid] for a in items) / len(items)


def _times(asker: Asker, items: Sequence[Asked], ways: Sequence[Way], tick: Tick) -> dict[str, list[float]]:
    """Seconds per item at batch 1, pixels to answer, the ways in turn item by item; full depth is the untouched model. One warm-up each."""

    def runner(way: Way) -> Callable[[Asked], Any]:
        if way.key == "full":
            return asker.plain
        return lambda one: asker.ask(way.engine, [one], pixels=True)

    runners = {way.key: runner(way) for way in ways}
    out: dict[str, list[float]] = {way.key: [] for way in ways}
    for run in runners.values():
        run(items[0])
    for one in items:
        tick("wall-clock, in turn")
        for key, run in runners.items():
            start = time.perf_counter()
            run(one)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            out[key].append(time.perf_counter() - start)
    return out


def saturation(asker: Asker, items: Sequence[Asked]) -> dict[str, Any]:
    """Similarity of consecutive states after each layer: mean and quartiles over rows (decoder: over tokens), at full depth."""
    trace = asker.ask(Engine(asker.model, "mue", decoder_scope="last").recording(), items).trace
    out = {}
    for stream, sure in trace.sureness.items():
        rows = sure.flatten(0, -2).double()
        rows = rows[~rows.isnan().any(-1)]
        low, high = torch.quantile(rows, torch.tensor([0.25, 0.75]).double(), dim=0)
        out[stream] = {"mean": rows.mean(0).tolist(), "q1": low.tolist(), "q3": high.tolist()}
    return out


def _card(asked: Asked, place: int, said: dict[str, Said], points: dict[str, list[float]]) -> dict[str, Any]:
    """One item of the gallery, with what full depth and the method said."""
    with asked.item.picture() as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((400, 300))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    answers = {}
    for key in [k for k in ("full", "mue", "saved") if k in said]:
        one = said[key]
        depth = {s: int(d[place]) for s, d in one.trace.depth.items() if d.dim() == 1}
        answers[key] = {
            "text": one.texts[place],
            "tokens": [list(t) for t in one.tokens[place]],
            "score": points[key][place] / 100,
            "depth": depth,
        }
    return {
        "item": asked.item.name, "picture": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), "size":
        list(picture.size),
        "prompt": asked.item.prompt, "references": list(asked.item.references[:2]), "credit": asked.item.credit, "answers": answers,
    }  # fmt: skip


def _spread(count: int, wanted: int) -> list[int]:
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(min(wanted, count))]


def _calibration(kind: str, folder: str | Path | None, given: str | Path, skip_bad: bool, add_caption: bool) -> tasks.Task:
    """The calibration task: another folder, or another split of the same."""
    if Path(given).is_dir() or tasks.is_hub(given):
        return tasks.load(kind, given, None, skip_bad, add_caption=add_caption)
    return tasks.load(kind, folder or tasks.sample_folder(kind), str(given), skip_bad, add_caption=add_caption)
