"""Thresholds for a task: answers of one telling token on a ledger (every item at every exit), everything else by live runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..calibrate.budget import Calibration, one_wish
from ..calibrate.front import front, known_budget, within
from ..calibrate.guarantee import split_rows
from ..calibrate.ledger import Ledger, cheapest, record
from ..calibrate.prices import known_unit
from ..calibrate.profile import ITEMS, prices_of
from ..calibrate.promised import promised
from ..engine import Engine
from ..errors import CalibrationError
from ..reading import Reading
from ..trace import Trace
from .ask import Asked, Asker, scores
from .metrics import CiderScorer

Tick = Callable[[str], None]


def telling(bar: Any, prefix: str = "") -> Tick:
    """A tick that moves a tqdm bar on and names what is done; the bar redraws in its own time, not at each item."""

    def tick(what: str) -> None:
        bar.set_description_str(f"{prefix}{what}", refresh=False)
        bar.update()

    return tick


@dataclass(frozen=True)
class Wish:
    """What thresholds are to do. keep: share of quality; margin: see `calibrate.budget.Bar`. confidence: promise it for new items.

    budget: instead, the best quality at this share of full depth's cost, in `cost` ('etr', 'macs', 'ms'). front: keep the whole front of
    quality against cost. trials: most settings that are run, where runs decide.
    """

    keep: float = 0.99
    margin: float = 0.0
    confidence: float | None = None
    budget: float | None = None
    cost: str = "etr"
    front: bool = False
    trials: int = 24

    def __post_init__(self) -> None:
        one_wish(self.confidence, self.budget, self.margin)
        known_unit(self.cost)
        if self.budget is not None:
            known_budget(self.budget)


def thresholds(
    asker: Asker, engine: Engine, kind: str, items: Sequence[Asked], wish: Wish, tick: Tick = lambda _: None
) -> tuple[Engine, Calibration]:
    """The engine with the thresholds that are wished for on these items, and what was found. Raises CalibrationError."""
    one_class(kind, items)
    if tellable(asker, kind, items) and replayable(engine):
        found = _by_ledger(asker, engine, items, wish, tick)
        engine = engine.with_settings(**found.settings)
        engine.calibration = found
        return engine, found
    if wish.front and wish.budget is None:
        raise CalibrationError("The front of captions takes runs, and so a budget to spend them around. Give --budget with --front.")
    engine = engine.with_settings()
    how = live(asker, kind, tick)
    if wish.confidence is not None:
        how |= {"quality": steady(kind, items), "scale": None if kind == "caption" else 100.0}
    how |= {"confidence": wish.confidence, "budget": wish.budget, "cost": wish.cost}
    found = engine.calibrate(items, keep=wish.keep, margin=wish.margin, trials=wish.trials, **how)
    if not wish.front and found.front is not None:
        engine.calibration = found = replace(found, front=None)
    return engine, found


def one_class(kind: str, items: Sequence[Asked]) -> None:
    """Raises CalibrationError if all answers are the same: whoever always says it is right, whatever the depth."""
    answers = {one.item.references[0] for one in items}
    if kind == "answer" and len(answers) == 1:
        raise CalibrationError(
            f"All {len(items)} items have the answer {answers.pop()!r}: depths cannot be judged by one class. Give items of every answer."
        )


def _by_ledger(asker: Asker, engine: Engine, items: Sequence[Asked], wish: Wish, tick: Tick) -> Calibration:
    """Every setting judged on every item at every exit."""
    book, least = ledger(asker, engine, items, tick=tick), engine.settings_dict().get("minimum", 1)
    if wish.confidence is not None:
        found = promised(book, wish.keep, wish.confidence, minimum=least)
    elif wish.budget is None:
        found = cheapest(book, wish.keep, minimum=least, margin=wish.margin)
    if wish.budget is None and not wish.front:
        return found

    def traced(one: Asked, other: Engine) -> Trace:
        tick(f"prices ({wish.cost})")
        return asker.ask(other, [one], pixels=True).trace

    prices = prices_of(engine, wish.cost, [partial(traced, one) for one in items[:ITEMS]])
    if wish.budget is None:
        return replace(found, front=front(book, prices, minimum=least), cost={"unit": prices.unit, "prices": prices.to_dict()})
    found = within(book, wish.budget, prices, least)
    return found if wish.front else replace(found, front=None)


def tellable(asker: Asker, kind: str, items: Sequence[Asked]) -> bool:
    """Whether the first token of every answer tells it apart, so that a ledger can hold them."""
    return kind == "answer" and all(asker.trie(one.item).first_tokens() is not None for one in items)


def replayable(engine: Engine) -> bool:
    """Whether a ledger of similarities can say what a threshold does: it is the same at every step, and no rule reads answers."""
    reads = any(isinstance(rule, Reading) for rule in engine.plan().rules.values())
    return not reads and bool(engine.settings_dict().get("schedule", "static") == "static")


def live(asker: Asker, kind: str, tick: Tick = lambda _: None, rows: int = 32) -> dict[str, Any]:
    """How `Engine.calibrate` runs the items, and how it judges what was said."""

    def predict(engine: Engine, items: Sequence[Asked]) -> tuple[list[str], Trace]:
        tick("the items at other thresholds")
        said = asker.ask(engine, items, rows)
        return said.texts, said.trace

    def quality(texts: Sequence[str], items: Sequence[Asked]) -> list[float]:
        return scores(kind, texts, [one.item for one in items])

    return {"predict": predict, "quality": quality}


def steady(kind: str, items: Sequence[Asked], seed: int = 0) -> Callable[[Sequence[str], Sequence[Asked]], list[float]]:
    """A quality that is the same for an item whatever stands beside it, as a promise needs: CIDEr's document frequencies come from the
    items that only order the settings (`guarantee.split_rows`, of these items by this seed)."""
    corpus = [items[i].item.references for i in split_rows(len(items), seed)[0]] if kind == "caption" else []

    def quality(texts: Sequence[str], given: Sequence[Asked]) -> list[float]:
        if kind != "caption":
            return scores(kind, texts, [one.item for one in given])
        scorer = CiderScorer([one.item.references for one in given], corpus=corpus)
        return [scorer.score(text, place) for place, text in enumerate(texts)]

    return quality


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
