"""Judges exits: every row at every exit is recorded once; fronts are replayed, the chosen thresholds are run, counted and timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from glue_data import Encoded
from glue_learn import ROWS
from torch import Tensor

from exitwise import Engine
from exitwise.bench.speed import alternate
from exitwise.calibrate.budget import depths_at
from exitwise.cost import count_macs
from exitwise.train.exits import Learner

Score = Callable[[Sequence[int], Sequence[int]], float]
NEVER = 1.0
POINTS = 200


@dataclass(frozen=True)
class Book:
    """Every row at every exit. sureness: (rows, exits), NaN at the last. answers: (rows, exits) classes."""

    sureness: Tensor
    answers: Tensor
    labels: list[int]

    def at(self, depth: Tensor, score: Score) -> dict[str, float]:
        """The figure and the mean depth, where rows leave at these depths."""
        said = self.answers[torch.arange(len(depth)), depth - 1].tolist()
        return {"score": score(said, self.labels), "depth": float(depth.double().mean())}

    def front(self, score: Score) -> list[dict[str, float]]:
        """One point for each of many thresholds, from never to always."""
        values = self.sureness[:, :-1].flatten().double()
        wanted = torch.quantile(values[:: max(1, len(values) // 100_000)], torch.linspace(0, 1, POINTS).double())
        thresholds = [NEVER, *sorted({min(float(v), NEVER) for v in wanted}, reverse=True), 0.0]
        return [{"threshold": t, **self.at(depths_at(self.sureness, t), score)} for t in dict.fromkeys(thresholds)]

    def oracle(self, score: Score) -> dict[str, float]:
        """The first exit that says what the last one says."""
        agrees = self.answers == self.answers[:, -1:]
        return self.at(agrees.int().argmax(1) + 1, score)

    def static(self, score: Score) -> list[dict[str, float]]:
        """All rows at one depth, for each depth."""
        rows, exits = self.answers.shape
        return [self.at(torch.full((rows,), d), score) for d in range(1, exits + 1)]


def book(engine: Engine, rows: Encoded) -> Book:
    """Records the rows at full depth."""
    assert engine.exits is not None
    learner = Learner(engine.model, engine.family, engine.exits, frozen=True).eval()
    never = engine.with_settings(**dict.fromkeys(engine.layers, NEVER))
    sureness, answers = torch.zeros(len(rows), 0), torch.zeros(len(rows), 0, dtype=torch.long)
    for places in rows.in_turn(ROWS):
        inputs, _ = rows.batch(places)
        with torch.no_grad():
            said = torch.stack(learner.answers(learner.walk(inputs)), 1).argmax(-1)
        (sure,) = never.run(record=True, **inputs).trace.sureness.values()
        if not sureness.shape[1]:
            sureness, answers = sureness.new_zeros(len(rows), sure.shape[1]), answers.new_zeros(len(rows), said.shape[1])
        sureness[places], answers[places] = sure, said
    engine.model.requires_grad_(True)
    return Book(sureness, answers, rows.labels)


def chosen(front: Sequence[dict[str, float]], floor: float) -> dict[str, float]:
    """The point of the least mean depth whose score is not below the floor; never leaving always is such a point for a floor it sets."""
    return min((p for p in front if p["score"] >= floor - 1e-9), key=lambda p: p["depth"], default=front[0])


def live(engine: Engine, rows: Encoded, score: Score) -> dict[str, Any]:
    """One row at a time, so that nothing is padded: the figure, depths, multiply-accumulates (all that ran: layers, poolers, heads)."""
    said, depths, macs = [], [], 0
    for place in range(len(rows)):
        inputs, _ = rows.batch([place])
        with count_macs() as counted:
            out = engine.run(**inputs)
        (depth,) = out.trace.depth.values()
        said.append(int(out.logits.argmax(-1)))
        depths.append(int(depth))
        macs += counted.total
    histogram = [depths.count(d) for d in range(1, max(engine.layers.values()) + 1)]
    return {"score": score(said, rows.labels), "depth": statistics.mean(depths), "macs": macs / len(rows), "exits": histogram, "said": said}


def timed(engine: Engine, rows: Encoded, size: int, most: int, repeats: int = 5) -> dict[str, Any]:
    """Share of the wall-clock that the exits save at a batch size, untouched model and exits in turn; medians."""
    batches = [rows.batch(places)[0] for places in list(rows.in_turn(size))]
    batches = batches[:: max(1, len(batches) * size // most)]

    def full() -> None:
        with torch.no_grad():
            for inputs in batches:
                engine.model(**inputs)

    def exits() -> None:
        for inputs in batches:
            engine.run(**inputs)

    seconds = alternate({"full": full, "exits": exits}, repeats)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    return {
        "batch": size,
        "rows": len(batches) * size,
        "saved": 1 - medians["exits"] / medians["full"],
        "median_s": medians,
        "times_s": seconds,
    }
