"""Whether promises are kept on real answers: a recorded ledger stands for the source, samples are drawn from it, and all is known.

Rows are drawn with replacement, so that they are independent, and the truth about a setting is its mean over the whole ledger. A promise is
broken where that is above the risk. Judged are `promised`, which is what `exitwise calibrate --confidence` does, and every procedure with
every bound of `calibrate.guarantee` on settings that were fixed before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..calibrate.bounds import BOUNDS
from ..calibrate.guarantee import PROCEDURES, Promise, promise
from ..calibrate.ledger import DECODER, Ledger, grid, thresholds_of
from ..calibrate.promised import promised
from ..calibrate.replay import replay

Floats = NDArray[np.float64]
COMMAND = "exitwise calibrate"


@dataclass(frozen=True)
class Asked:
    """rows: of a sample; repeats: samples. keep, confidence: what is promised. path: settings fixed before, for the procedures."""

    rows: int = 2000
    repeats: int = 1000
    keep: float = 0.99
    confidence: float = 0.95
    path: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Truth:
    """The recorded rows that full depth gets right, and what settings lose and cost on all that were recorded."""

    book: Ledger
    right: Ledger

    @staticmethod
    def of(book: Ledger) -> Truth:
        """From a ledger."""
        return Truth(book, book.select(book.marks(book.whole()).bool().nonzero()[:, 0]))

    def lost(self, settings: dict[str, float]) -> float:
        """Share of the right answers that are lost."""
        return 1 - float(self.right.marks(self.right.depths(settings)).mean())

    def cost(self, settings: dict[str, float]) -> float:
        """One minus ETR."""
        return 1 - self.book.etr(self.book.depths(settings))

    def hindsight(self, risk: float, encoder: int = 10, decoder: int = 30) -> tuple[dict[str, float], float]:
        """(settings, cost) of the cheapest of a grid as `promised` makes it that keeps the risk."""
        choices, last = grid(self.book, encoder), thresholds_of(self.book.decoder, self.book.layers[DECODER], decoder)
        lost = 1 - replay(self.right, choices, last).right / self.right.rows
        found = replay(self.book, choices, last)
        cost = np.where(lost <= risk, 1 - found.etr(), np.inf)
        place = divmod(int(cost.argmin()), len(last))
        return found.settings(*place), float(cost[place])


def along(book: Ledger, count: int) -> list[dict[str, float]]:
    """Settings from full depth to the least: all thresholds fall together, through the quantiles of what was measured."""
    levels = {s: thresholds_of(book.encoder[s], book.layers[s], count) for s in book.streams}
    levels[DECODER] = thresholds_of(book.decoder, book.layers[DECODER], count)
    places = np.linspace(1, 0, count)
    return [{s: t[round(place * (len(t) - 1))] for s, t in levels.items()} for place in places]


def simulate(book: Ledger, asked: Asked, tick: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """How often promises were broken, and what they cost over the best of hindsight; a row for the command and for each pair.

    violations: share of samples with a broken promise; refused: with none; cost: mean cost of what was chosen (full depth costs 1);
    over_hindsight: that over the cost of the cheapest setting that keeps the risk, of the same settings.
    """
    truth = Truth.of(book)
    settings, best = truth.hindsight(1 - asked.keep)
    rows = {COMMAND: _row(_command(truth, asked, tick), asked, best)}
    for procedure, bound, outcomes, cheapest in _procedures(truth, asked, tick):
        rows[f"{procedure}, {bound}"] = _row(outcomes, asked, cheapest)
    return {
        "recorded": book.rows, "right": truth.right.rows, "full": book.full, "hindsight": {"settings": settings, "cost": best},
        "rows": rows, "violation_rate": max(row["violations"] for row in rows.values()),
        "cost_over_hindsight": rows[COMMAND]["over_hindsight"],
    }  # fmt: skip


def _row(outcomes: list[tuple[float | None, float]], asked: Asked, best: float) -> dict[str, float]:
    """outcomes: (what is truly lost, None where nothing was promised; cost) of each sample."""
    made = [lost for lost, _ in outcomes if lost is not None]
    cost = float(np.mean([cost for _, cost in outcomes]))
    return {
        "violations": sum(lost > 1 - asked.keep + 1e-12 for lost in made) / len(outcomes),
        "refused": 1 - len(made) / len(outcomes), "cost": cost, "over_hindsight": cost / best,
    }  # fmt: skip


def _draws(truth: Truth, asked: Asked) -> Iterator[tuple[int, torch.Tensor]]:
    for turn in range(asked.repeats):
        drawn = np.random.default_rng([asked.seed, turn]).integers(0, truth.book.rows, asked.rows)
        yield turn, torch.from_numpy(drawn)


def _command(truth: Truth, asked: Asked, tick: Callable[[str], None]) -> list[tuple[float | None, float]]:
    out: list[tuple[float | None, float]] = []
    for turn, drawn in _draws(truth, asked):
        tick(COMMAND)
        found = promised(truth.book.select(drawn), asked.keep, asked.confidence, seed=turn)
        told = Promise.from_dict(found.promise or {})
        out.append((None if told.setting is None else truth.lost(found.settings), truth.cost(found.settings)))
    return out


def _procedures(
    truth: Truth, asked: Asked, tick: Callable[[str], None]
) -> Iterator[tuple[str, str, list[tuple[float | None, float]], float]]:
    """(procedure, bound, outcomes, cost of the cheapest of these settings that keeps the risk)."""
    path = along(truth.book, asked.path)
    whole = truth.book.marks(truth.book.whole()).bool().numpy()
    lost = np.stack([1 - truth.book.marks(truth.book.depths(s)).numpy() for s in path], axis=1).astype(bool)
    cost = np.array([truth.cost(s) for s in path])
    true = lost[whole].mean(0)
    for procedure, bound in itertools.product(PROCEDURES, BOUNDS):
        outcomes: list[tuple[float | None, float]] = []
        for turn, drawn in _draws(truth, asked):
            tick(f"{procedure}, {bound}")
            rows = drawn.numpy()[whole[drawn.numpy()]]  # what full depth gets wrong cannot be lost
            said = promise(lost[rows], cost, 1 - asked.keep, asked.confidence, bound, procedure, turn)
            outcomes.append((None, 1.0) if said.setting is None else (float(true[said.setting]), float(cost[said.setting])))
        yield procedure, bound, outcomes, float(cost[true <= 1 - asked.keep].min())
