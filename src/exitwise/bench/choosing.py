"""Thresholds for a task: answers of one telling token on a ledger (every item at every exit), everything else by live runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calibrate.budget import Calibration
from ..calibrate.ledger import Ledger, cheapest, record
from ..calibrate.promised import promised
from ..engine import Engine
from ..errors import CalibrationError
from ..trace import Trace
from .ask import Asked, Asker, scores

Tick = Callable[[str], None]


def telling(bar: Any, prefix: str = "") -> Tick:
    """A tick that moves a tqdm bar on and names what is done; the bar redraws in its own time, not at each item."""

    def tick(what: str) -> None:
        bar.set_description_str(f"{prefix}{what}", refresh=False)
        bar.update()

    return tick


def thresholds(
    asker: Asker,
    engine: Engine,
    kind: str,
    items: Sequence[Asked],
    keep: float,
    margin: float = 0.0,
    confidence: float | None = None,
    trials: int = 24,
    tick: Tick = lambda _: None,
) -> tuple[Engine, Calibration]:
    """The engine with the cheapest thresholds that keep enough on these items, and what was found.

    margin: see `calibrate.budget.Bar`. confidence: promise it (`calibrate.promised`), for answers of one telling token only. Raises
    CalibrationError.
    """
    by_ledger = tellable(asker, kind, items) and replayable(engine)
    if confidence is not None and (margin or not by_ledger):
        raise CalibrationError(
            "A promise with a confidence is made for answers that their first token tells apart, and has no margin. "
            "Leave --confidence out for other tasks, or --margin with it."
        )
    if by_ledger:
        book, least = ledger(asker, engine, items, tick=tick), engine.settings_dict().get("minimum", 1)
        if confidence is None:
            found = cheapest(book, keep, minimum=least, margin=margin)
        else:
            found = promised(book, keep, confidence, minimum=least)
        engine = engine.with_settings(**found.settings)
        engine.calibration = found
        return engine, found
    engine = engine.with_settings()
    return engine, engine.calibrate(items, keep=keep, margin=margin, trials=trials, **live(asker, kind, tick))


def tellable(asker: Asker, kind: str, items: Sequence[Asked]) -> bool:
    """Whether the first token of every answer tells it apart, so that a ledger can hold them."""
    return kind == "answer" and all(asker.trie(one.item).first_tokens() is not None for one in items)


def replayable(engine: Engine) -> bool:
    """Whether a threshold is the same at every step, as a ledger takes it to be."""
    return bool(engine.settings_dict().get("schedule", "static") == "static")


def live(asker: Asker, kind: str, tick: Tick = lambda _: None, rows: int = 32) -> dict[str, Any]:
    """How `Engine.calibrate` runs the items, and how it judges what was said."""

    def predict(engine: Engine, items: Sequence[Asked]) -> tuple[list[str], Trace]:
        tick("the items at other thresholds")
        said = asker.ask(engine, items, rows)
        return said.texts, said.trace

    def quality(texts: Sequence[str], items: Sequence[Asked]) -> list[float]:
        return scores(kind, texts, [one.item for one in items])

    return {"predict": predict, "quality": quality}


def alone(engine: Engine) -> Engine:
    """The engine, each row measured by itself: what a batch of one is to an engine that measures a batch as a single row."""
    return engine.with_settings(batch="compact") if engine.plan().pooled else engine


def ledger(asker: Asker, engine: Engine, items: Sequence[Asked], rows: int = 32, tick: Tick = lambda _: None) -> Ledger:
    """Every item at every exit and every pair of encoder depths."""
    engine = alone(engine)

    def batches() -> Iterator[tuple[dict[str, Any], Callable[[Tensor], Tensor]]]:
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
