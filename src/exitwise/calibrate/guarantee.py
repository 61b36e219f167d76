"""A promise about a setting, whatever the model: with the asked confidence, its mean loss on new rows is at most the asked risk.

In this order: how many tests are paid for, what was promised, and `promise`. What is lost and how it is bounded: `bounds`.
Learn-then-Test: Angelopoulos et al. 2021, arXiv:2110.01052. The rows must be independent draws of the source that will be served.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError, KnobError
from .bounds import STRIDE, Floats, Losses, checked, checked_risk, one_of, p_values, rows_needed

Test = Callable[[NDArray[np.intp]], Floats]  # indices of settings -> their p-values

PROCEDURES = ("fixed_sequence", "bonferroni", "split")
ORDERING = 3  # one row of so many orders the settings in the procedure "split"


def _tested(test: Test, path: NDArray[np.intp], at_once: int = STRIDE) -> Iterator[tuple[int, float]]:
    """(setting, p-value) along the path, tested as far as they are asked for."""
    for start in range(0, len(path), at_once):
        chunk = path[start : start + at_once]
        yield from zip(chunk.tolist(), test(chunk).tolist())


def fixed_sequence(test: Test, path: NDArray[np.intp], level: float, at_once: int = STRIDE) -> list[tuple[int, float]]:
    """(setting, p-value) along a path that was fixed without these rows, up to the first that fails: each test has the whole level.

    at_once: settings that are tested together, although an earlier one may fail; 1 where a test costs a run.
    """
    return list(itertools.takewhile(lambda tested: tested[1] <= level, _tested(test, path, at_once)))


def split_rows(rows: int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(the third of the rows that orders the settings, the others, which test them), by number, drawn by `seed`.

    Raises CalibrationError for fewer than three rows.
    """
    if rows < ORDERING:
        raise CalibrationError(f"{rows} rows cannot be split into an ordering third and a testing rest. Give a few hundred.")
    shuffled = np.random.default_rng([seed, 1]).permutation(rows)
    return shuffled[: rows // ORDERING], shuffled[rows // ORDERING :]


def with_ordering(rows: int | None) -> int | None:
    """Rows in all, so that so many are left to test when a third only orders; None stays None."""
    return None if rows is None else rows + (rows - 1) // (ORDERING - 1)


def bonferroni(test: Test, path: NDArray[np.intp], level: float) -> list[tuple[int, float]]:
    """(setting, p-value) of all that pass at level / settings: needs no path, pays for every setting."""
    return [tested for tested in _tested(test, path) if tested[1] <= level / len(path)]


def front(loss: Floats, cost: Floats) -> NDArray[np.intp]:
    """Settings to test in turn, from least loss to least cost: those that no other beats in both (Laufer-Goldshtein et al. 2023,
    arXiv:2210.07913). Before them up to seven dearer ones of the same least loss: a tie at few rows says little. loss, cost: (settings,).
    """
    order = np.lexsort((cost, loss))
    prices = cost[order]
    kept = order[np.concatenate([[True], prices[1:] < np.minimum.accumulate(prices)[:-1]])]
    least = order[loss[order] == loss[order[0]]][::-1]  # dearest first; the last is kept[0]
    return np.concatenate([least[np.unique(np.linspace(0, len(least) - 1, 8).astype(np.intp))[:-1]], kept])


@dataclass(frozen=True)
class Promise:
    """What was promised, and from what.

    setting: the cheapest that passed, by index; None: nothing can be promised but full depth. passed: how many settings did. rows: those
    that tested; ordering_rows: those that only ordered the settings. observed, p_value, cost: of the setting, on the rows that tested.
    rows_if_lossless, rows_if_alike: set if nothing passed, rows in all that would do if they showed no loss, or losses spread like those
    of the setting tested first (the safest, for bonferroni); None if no number would. loss: what was bounded, in words.
    """

    setting: int | None
    risk: float
    confidence: float
    bound: str
    procedure: str
    settings: int
    passed: int
    rows: int
    ordering_rows: int = 0
    seed: int = 0
    observed: float | None = None
    p_value: float | None = None
    cost: float | None = None
    rows_if_lossless: int | None = None
    rows_if_alike: int | None = None
    loss: str = ""

    def __str__(self) -> str:
        asked = f"risk at most {self.risk:g} with confidence {self.confidence:g}"
        if self.setting is not None:
            return f"Setting {self.setting}: {asked}; {self.observed:.4g} was observed on {self.rows} rows."
        alike = "no number" if self.rows_if_alike is None else f"about {self.rows_if_alike}"
        return (
            f"Nothing but full depth can be promised from {self.rows + self.ordering_rows} rows for {asked}. "
            f"Rows that would do: {self.rows_if_lossless or 'no number'} without a loss, {alike} with losses as observed. "
            "Give more rows, or allow more risk."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Promise:
        """The inverse of to_dict."""
        return Promise(**body)


def promise(
    losses: ArrayLike,
    cost: ArrayLike,
    risk: float,
    confidence: float = 0.95,
    bound: str = "waudby_smith_ramdas",
    procedure: str = "fixed_sequence",
    seed: int = 0,
) -> Promise:
    """The cheapest setting whose mean loss on new rows is at most `risk`; wrong with probability 1 - confidence at most.

    losses: (rows, settings) in [0, 1]. cost: (settings,), known without these rows, or (rows, settings), measured on them.
    procedure: "fixed_sequence" tests from the dearest setting down and stops at the first that fails; "bonferroni" tests all; "split" lets
    a third of the rows, drawn by `seed`, order the settings (`front`), and tests along that path with the others.
    Raises CalibrationError if the data cannot be used, KnobError if an option cannot.
    """
    array = checked(losses)
    one_of("procedure", procedure, PROCEDURES)
    if not 0 < confidence < 1:
        raise KnobError(f"confidence={confidence} is not a probability short of certainty. Allowed: above 0, below 1.")
    prices = _prices(cost, array, procedure)
    path, rows = _path(array, prices, procedure, seed)
    level = 1 - confidence
    each = level / len(path) if procedure == "bonferroni" else level

    def test(columns: NDArray[np.intp]) -> Floats:
        return p_values(array[np.ix_(rows, columns)], checked_risk(risk), bound, each, seed)

    passed = (bonferroni if procedure == "bonferroni" else fixed_sequence)(test, path, level)
    said = Promise(None, risk, confidence, bound, procedure, array.shape[1], len(passed), len(rows), len(array) - len(rows), seed)
    if passed:
        mean_cost = prices.mean(0)
        setting, p_value = min(passed, key=lambda tested: mean_cost[tested[0]])
        observed = float(array[rows, setting].mean(dtype=np.float64))
        return replace(said, setting=setting, observed=observed, p_value=p_value, cost=float(mean_cost[setting]))
    safest = array[rows, int(array.mean(0).argmin()) if procedure == "bonferroni" else path[0]]
    counts = [rows_needed(spread, risk, bound, each, seed) for spread in (np.zeros(1), safest)]
    if procedure == "split":  # what the tests need is what the ordering leaves
        counts = [with_ordering(n) for n in counts]
    return replace(said, rows_if_lossless=counts[0], rows_if_alike=counts[1])


def _prices(cost: ArrayLike, array: Losses, procedure: str) -> Floats:
    """The cost as (1, settings) or (rows, settings)."""
    prices = np.atleast_2d(np.asarray(cost, dtype=np.float64))
    if np.shape(cost) not in (array.shape, array.shape[1:]) or not np.isfinite(prices).all():
        raise CalibrationError(f"Costs of shape {np.shape(cost)} do not fit {array.shape[1]} settings, or are not finite. Give one each.")
    if len(np.shape(cost)) == 2 and procedure == "fixed_sequence":
        raise CalibrationError(
            "Costs measured on the testing rows cannot order the settings. Give costs known before, or procedure='split'."
        )
    return prices


def _path(array: Losses, prices: Floats, procedure: str, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(settings in the order of their tests, rows to test them with)."""
    if procedure != "split":
        return np.argsort(-prices.mean(0), kind="stable"), np.arange(len(array))
    first, rest = split_rows(len(array), seed)
    return front(array[first].mean(0, dtype=np.float64), (prices[first] if len(prices) > 1 else prices).mean(0)), rest
