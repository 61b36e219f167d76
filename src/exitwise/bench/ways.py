"""The ways that are compared: full depth, the method, the method with one exit for both streams, and static and random exits at its cost.

Everything is chosen on the calibration items. Answers are calibrated on a ledger (every row at every exit), captions by live runs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import methods
from ..calibrate.front import within
from ..calibrate.ledger import Ledger, best_static, cheapest, remeasured
from ..calibrate.profile import prices_of
from ..engine import Engine
from ..kept import SETTINGS_FILE
from ..trace import Trace
from .ask import Asked, Asker
from .choosing import Tick, alone, ledger, live

FINE = (60, 200)  # thresholds of each encoder stream and of the decoder, where a cost is to be met closely
LABELS = {"full": "full depth", "mue": "MuE", "joint": "MuE, joint exit", "static": "static depth", "random": "random exits"}


@dataclass
class Way:
    """One row of the table: how the model runs, and what was chosen for it."""

    key: str
    engine: Engine
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How the table calls it."""
        return LABELS.get(self.key, f"{self.engine.method_name}, {self.key}")


@dataclass(frozen=True)
class Request:
    """What calibration is asked for. margin: see `calibrate.budget.Bar`. preset: of the method; its thresholds are chosen anew.

    budget: instead, the best at this share of full depth's cost in layers; of captions those most like full depth's own. References say of
    a few hundred photos what a caption is worth to some percent at best; whether it is full depth's caption is certain for each of them.
    """

    keep: float = 0.99
    margin: float = 0.0
    trials: int = 30
    statics: int = 10
    rows: int = 32
    seed: int = 0
    preset: str | None = None
    budget: float | None = None


def engine_for(asker: Asker, kind: str, preset: str | None = None, **knobs: Any) -> Engine:
    """The method as a task of this kind asks it: answers are read off the last token, unless the preset says otherwise."""
    own = {"decoder_scope": "last"} if kind == "answer" else {}
    return Engine(asker.model, "mue", **{**own, **methods.load("mue").preset(preset, kind), **knobs})


def choose(
    asker: Asker, kind: str, items: Sequence[Asked], request: Request, tick: Tick = lambda _: None
) -> tuple[list[Way], dict[str, Any]]:
    """The ways with their settings, and what the calibration found (for the record)."""
    full = Way("full", Engine(asker.model, "never"))
    pick = _answers if kind == "answer" else _captions
    ways, found = pick(asker, items, request, tick)
    weights: dict[str, Any] = dict(histogram(asker.ask(ways[0].engine, items, request.rows).trace))
    drawn = Engine(asker.model, "random", seed=request.seed, **weights)
    ways.append(Way("random", drawn, weights))
    return [full, *ways], found


def keep(ways: Sequence[Way], folder: Path) -> None:
    """Writes every way but full depth to FOLDER/<key>/exitwise.json, so that it can be judged again as it is."""
    for way in ways:
        if way.key != "full":
            way.engine.save(folder / way.key)


def kept(asker: Asker, folder: Path) -> list[Way]:
    """Full depth, and the ways of a folder: that of `keep`, or one of `Engine.save`. Raises CheckpointError, FingerprintError."""
    full = Way("full", Engine(asker.model, "never"))
    known = [key for key in LABELS if (folder / key / SETTINGS_FILE).exists()]
    found = [(key, Engine.load(folder / key, asker.model)) for key in known] or [("saved", Engine.load(folder, asker.model))]
    return [full, *(Way(key, engine, engine.settings_dict()) for key, engine in found)]


def histogram(trace: Trace) -> dict[str, tuple[float, ...]]:
    """stream -> share of rows (decoder: of tokens) that left at each depth 1..n."""
    out = {}
    for stream, depth in trace.depth.items():
        seen = depth[depth > 0]
        out[stream] = tuple(float((seen == d).double().mean()) for d in range(1, trace.layers[stream] + 1))
    return out


def _answers(asker: Asker, items: Sequence[Asked], request: Request, tick: Tick) -> tuple[list[Way], dict[str, Any]]:
    base = engine_for(asker, "answer", request.preset)
    book = ledger(asker, base, items, request.rows, tick)
    tick("thresholds")
    if request.budget is None:
        found = cheapest(book, request.keep, margin=request.margin)
    else:
        found = replace(within(book, request.budget, prices_of(base, "etr", ()), encoder=FINE[0], decoder=FINE[1]), front=None)
    base = base.with_settings(**found.settings)
    base.calibration = found
    joint = engine_for(asker, "answer", request.preset, decompose=False)
    batches = ({**asker.inputs([items[p] for p in places]), "use_cache": False} for places in asker.groups(items, request.rows))
    tied = cheapest(remeasured(book, alone(joint), batches), min(1.0, found.keep), margin=request.margin, tied=True)
    depths: dict[str, Any] = dict(best_static(book, found.etr)[0])
    ways = [
        Way("mue", base, found.settings),
        Way("joint", joint.with_settings(**tied.settings), tied.settings),
        Way("static", Engine(asker.model, "static", **depths), depths),
    ]
    sweep = {"mue": _points(found.tried, 100.0), "static": _static_points(book)}
    return ways, {**found.to_dict(), "tried": len(found.tried), "sweep": sweep}


def _points(tried: Sequence[dict[str, Any]], scale: float = 1.0) -> list[dict[str, float]]:
    """Settings that were looked at on the calibration items, for the plot."""
    return [{"etr": t["etr"], "quality": scale * t["quality"]} for t in tried]


def _static_points(book: Ledger) -> list[dict[str, float]]:
    names = (*book.streams, "decoder")
    combos = itertools.product(*(range(1, book.layers[s] + 1) for s in names))
    found = (book.static(**dict(zip(names, combo, strict=True))) for combo in combos)
    return [{"etr": saved, "quality": 100 * share} for share, saved in found]


def _captions(asker: Asker, items: Sequence[Asked], request: Request, tick: Tick) -> tuple[list[Way], dict[str, Any]]:
    how = live(asker, "caption", tick, request.rows)
    wish: dict[str, Any] = {"keep": request.keep, "margin": request.margin}
    if request.budget is not None:
        own, _ = how["predict"](Engine(asker.model, "never"), items)
        wish, how = {"budget": request.budget}, {**how, "quality": partial(_alike, own)}
    asked = {**wish, **how}
    base = engine_for(asker, "caption", request.preset)
    found = base.calibrate(items, trials=request.trials, **asked)
    joint = engine_for(asker, "caption", request.preset, decompose=False)
    tied = joint.calibrate(items, trials=request.trials // 2, **asked)
    static: dict[str, Any] = dict(_static_captions(asker, items, found.etr, request, **how))
    ways = [
        Way("mue", base, found.settings),
        Way("joint", joint, tied.settings),
        Way("static", Engine(asker.model, "static", **static), dict(static)),
    ]
    return ways, {**found.to_dict(), "tried": len(found.tried), "sweep": {"mue": _points(found.tried)}}


def _alike(own: Sequence[str], texts: Sequence[str], items: Sequence[Asked]) -> list[float]:
    """100 for each text that is full depth's own, else 0."""
    return [100.0 * (text == mine) for text, mine in zip(texts, own, strict=True)]


def _static_captions(
    asker: Asker,
    items: Sequence[Asked],
    saved: float,
    request: Request,
    quality: Callable[..., list[float]],
    predict: Callable[..., tuple[list[str], Trace]],
) -> dict[str, int]:
    """The best of the dearest static depths that cost no more than `saved` allows; the prompt is constant, so its stream is looked
    at in three depths."""
    layers = Engine(asker.model, "never").layers
    most = (layers["image"] + layers["text"]) / 2 + layers["decoder"]
    combos = []
    for image, text, decoder in itertools.product(range(1, layers["image"] + 1), (1, 2, layers["text"]), range(1, layers["decoder"] + 1)):
        cost = (image + text) / 2 + decoder
        if 1 - cost / most >= saved - 1e-9:
            combos.append((cost, {"image": image, "text": text, "decoder": decoder}))
    combos.sort(key=lambda c: -c[0])
    best: tuple[float, dict[str, int]] = (-1.0, {"image": 1, "text": 1, "decoder": 1})
    for _, depths in combos[: request.statics]:
        knobs: dict[str, Any] = dict(depths)
        texts, _ = predict(Engine(asker.model, "static", **knobs), items)
        value = statistics.fmean(quality(texts, items))
        if value > best[0]:
            best = value, depths
    return best[1]
