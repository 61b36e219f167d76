"""The ways that are compared: full depth, the method, the method with one exit for both streams, and static and random exits at its cost.

Everything is chosen on the calibration items. Answers are calibrated on a ledger (every row at every exit), captions by live runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..calibrate.ledger import Ledger, best_static, cheapest, record
from ..engine import Engine
from ..trace import Trace
from .ask import Asked, Asker, scores

Tick = Callable[[str], None]


@dataclass
class Way:
    """One row of the table: how the model runs, and what was chosen for it."""

    key: str
    label: str
    engine: Engine
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What calibration is asked for. slack: share of quality kept beyond `keep`, against the luck of a finite split."""

    keep: float = 0.99
    slack: float = 0.0
    trials: int = 24
    statics: int = 10
    rows: int = 32
    seed: int = 0


def choose(
    asker: Asker, kind: str, items: Sequence[Asked], request: Request, tick: Tick = lambda _: None
) -> tuple[list[Way], dict[str, Any]]:
    """The ways with their settings, and what the calibration found (for the record)."""
    full = Way("full", "full depth", Engine(asker.model, "never"))
    pick = _answers if kind == "answer" else _captions
    ways, found = pick(asker, items, request, tick)
    weights: dict[str, Any] = dict(histogram(asker.ask(ways[0].engine, items, request.rows).trace))
    drawn = Engine(asker.model, "random", seed=request.seed, **weights)
    ways.append(Way("random", "random exits", drawn, weights))
    return [full, *ways], found


def histogram(trace: Trace) -> dict[str, tuple[float, ...]]:
    """stream -> share of rows (decoder: of tokens) that left at each depth 1..n."""
    out = {}
    for stream, depth in trace.depth.items():
        seen = depth[depth > 0]
        out[stream] = tuple(float((seen == d).double().mean()) for d in range(1, trace.layers[stream] + 1))
    return out


def ledger(asker: Asker, engine: Engine, items: Sequence[Asked], rows: int, tick: Tick = lambda _: None) -> Ledger:
    """Every item at every exit and every pair of encoder depths."""

    def batches() -> Any:
        for places in asker.groups(items, rows):
            part = [items[p] for p in places]
            tick("every item at every exit")
            yield {**asker.inputs(part), "use_cache": False}, _judge(asker, part)

    return record(engine, batches())


def _judge(asker: Asker, part: Sequence[Asked]) -> Callable[[Tensor], Tensor]:
    first = asker.trie(part[0].item).first_tokens()
    assert first is not None, "a ledger holds answers of one telling token"
    names, ids = first
    right = torch.tensor([names.index(a.item.references[0]) for a in part])
    return lambda logits: logits[:, ids].argmax(-1) == right


def _answers(asker: Asker, items: Sequence[Asked], request: Request, tick: Tick) -> tuple[list[Way], dict[str, Any]]:
    base = Engine(asker.model, "mue", decoder_scope="last")
    book = ledger(asker, base, items, request.rows, tick)
    tick("thresholds")
    found = cheapest(book, request.keep, slack=request.slack)
    joint = base.with_settings(decompose=False)
    tied = cheapest(ledger(asker, joint, items, request.rows, tick), request.keep, slack=request.slack)
    depths: dict[str, Any] = dict(best_static(book, found.etr)[0])
    ways = [
        Way("mue", "MuE", base.with_settings(**found.settings), found.settings),
        Way("joint", "MuE, joint exit", joint.with_settings(**_tied(tied.settings)), tied.settings),
        Way("static", "static depth", Engine(asker.model, "static", **depths), depths),
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


def _tied(settings: dict[str, float]) -> dict[str, float]:
    """One threshold for both streams."""
    encoder = next(v for k, v in settings.items() if k != "decoder")
    return {"image": encoder, "text": encoder, "decoder": settings["decoder"]}


def _captions(asker: Asker, items: Sequence[Asked], request: Request, tick: Tick) -> tuple[list[Way], dict[str, Any]]:
    def predict(engine: Engine, rows: Sequence[Asked]) -> tuple[list[str], Trace]:
        tick("captions at other thresholds")
        said = asker.ask(engine, rows, request.rows)
        return said.texts, said.trace

    def judge(texts: Sequence[str], rows: Sequence[Asked]) -> float:
        each = scores("caption", texts, [a.item for a in rows])
        return sum(each) / len(each)

    keep = min(1.0, request.keep + request.slack)
    base = Engine(asker.model, "mue")
    found = base.calibrate(items, keep=keep, quality=judge, predict=predict, trials=request.trials)
    joint = Engine(asker.model, "mue", decompose=False)
    tied = joint.calibrate(items, keep=keep, quality=judge, predict=predict, trials=request.trials // 2)
    joint = joint.with_settings(**_tied(tied.settings))
    static: dict[str, Any] = dict(_static_captions(asker, items, found.etr, request, judge, predict))
    ways = [
        Way("mue", "MuE", base, found.settings),
        Way("joint", "MuE, joint exit", joint, tied.settings),
        Way("static", "static depth", Engine(asker.model, "static", **static), dict(static)),
    ]
    return ways, {**found.to_dict(), "tried": len(found.tried), "sweep": {"mue": _points(found.tried)}}


def _static_captions(
    asker: Asker,
    items: Sequence[Asked],
    saved: float,
    request: Request,
    judge: Callable[..., float],
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
        value = judge(texts, items)
        if value > best[0]:
            best = value, depths
    return best[1]
