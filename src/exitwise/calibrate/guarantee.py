"""A promise about a setting, whatever the model: with the asked confidence, its mean loss on new rows is at most the asked risk.

In this order: what is lost, how it is bounded (p-values for "the mean loss is above risk"), how many tests are paid for, and `promise`.
Learn-then-Test: Angelopoulos et al. 2021, arXiv:2110.01052. The rows must be independent draws of the source that will be served.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError, KnobError

Losses = NDArray[Any]
Floats = NDArray[np.float64]
Test = Callable[[NDArray[np.intp]], Floats]  # indices of settings -> their p-values

BOUNDS = ("waudby_smith_ramdas", "hoeffding_bentkus", "clopper_pearson", "hoeffding")
PROCEDURES = ("fixed_sequence", "bonferroni", "split")
BET = 0.75  # the most that a bet may lose of its capital in one row; Waudby-Smith & Ramdas recommend 1/2 or 3/4
STRIDE = 128  # settings that are tested at once
ORDERING = 3  # one row of so many orders the settings in the procedure "split"
MOST = 1 << 21  # more rows than this are not counted


def lost_answers(full: ArrayLike, early: ArrayLike) -> Losses:
    """True where full depth was right and the early exit is not, (rows, settings). full: (rows,), early: (rows, settings), right or not.

    Its mean is never below the accuracy lost. Raises CalibrationError if the shapes do not fit.
    """
    ours, theirs = _aligned(full, early)
    return ours.astype(bool) & ~theirs.astype(bool)


def disagreement(full: ArrayLike, early: ArrayLike) -> Losses:
    """True where the early answer is not full depth's, (rows, settings). Answers (class or token ids, strings) as in `lost_answers`."""
    ours, theirs = _aligned(full, early)
    return np.asarray(ours != theirs)


def metric_loss(full: ArrayLike, early: ArrayLike, scale: float = 1.0) -> Losses:
    """clip((full - early) / scale, 0, 1), (rows, settings), of scores by row, higher is better. scale: the drop that counts as 1."""
    if not scale > 0:
        raise KnobError(f"scale={scale} is not a size of loss. Give the drop of the metric that counts as all lost, above 0.")
    ours, theirs = _aligned(full, early)
    return np.clip((ours.astype(np.float64) - theirs) / scale, 0, 1)


def _aligned(full: ArrayLike, early: ArrayLike) -> tuple[Losses, Losses]:
    ours, theirs = np.asarray(full), np.asarray(early)
    if ours.ndim != 1 or theirs.ndim != 2 or len(ours) != len(theirs):
        raise CalibrationError(f"Shapes {ours.shape} and {theirs.shape} do not fit. Give (rows,) at full depth and (rows, settings) early.")
    return ours[:, None], theirs


def checked(losses: ArrayLike) -> Losses:
    """The losses as an array (rows, settings). Raises CalibrationError if it is empty, of another shape, or not numbers in [0, 1]."""
    array = np.asarray(losses)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise CalibrationError(
            f"Losses of shape {array.shape}, {array.dtype}, cannot be tested. Give numbers (rows, settings), one at least."
        )
    if array.dtype != bool and not (array.min() >= 0 and array.max() <= 1):  # a NaN fails both
        raise CalibrationError(f"Losses lie in {array.min()}..{array.max()}. Allowed: 0..1, no NaN. `metric_loss` clips and scales.")
    return array


def hoeffding(losses: ArrayLike, risk: float) -> Floats:
    """(settings,) p-values exp(-2 n (risk - mean)^2); 1 if the mean is not below risk. Hoeffding 1963, doi:10.2307/2282952."""
    array = checked(losses)
    return np.exp(-2 * len(array) * np.maximum(_risk(risk) - array.mean(0, dtype=np.float64), 0) ** 2)


def hoeffding_bentkus(losses: ArrayLike, risk: float) -> Floats:
    """(settings,) p-values: the least of exp(-n h1(min(mean, risk), risk)) and e P(Bin(n, risk) <= ceil(n mean)), at most 1.

    h1(a, b) = a log(a/b) + (1 - a) log((1 - a)/(1 - b)). Bates et al. 2021, arXiv:2101.02703; Angelopoulos et al. 2021, arXiv:2110.01052.
    """
    array = checked(losses)
    total = array.sum(0, dtype=np.float64)
    mean = np.minimum(total / len(array), _risk(risk))
    h1 = mean * np.log(np.where(mean > 0, mean, 1) / risk) * (mean > 0) + (1 - mean) * np.log((1 - mean) / (1 - risk))
    bentkus = math.e * _binomial_cdf(np.ceil(total).astype(np.intp), len(array), risk)
    return np.minimum(np.minimum(np.exp(-len(array) * h1), bentkus), 1)


def clopper_pearson(losses: ArrayLike, risk: float) -> Floats:
    """(settings,) p-values: P(Bin(n, risk) <= losses counted). Exact, for losses 0 and 1 alone: others raise CalibrationError.

    Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    array = checked(losses)
    if array.dtype != bool and not ((array == 0) | (array == 1)).all():
        raise CalibrationError("clopper_pearson counts losses of 0 or 1; there are others. Use waudby_smith_ramdas or hoeffding_bentkus.")
    return _binomial_cdf(array.sum(0, dtype=np.intp), len(array), _risk(risk))


def waudby_smith_ramdas(losses: ArrayLike, risk: float, level: float = 0.05, seed: int = 0) -> Floats:
    """(settings,) p-values 1 / max_t K_t, at most 1, of the capital K_t = prod_{i<=t} (1 - bet_i (loss_i - risk)) of one who bets on less.

    bet_t = min(sqrt(2 log(1/level) / (n var_{t-1})), 3/4 / (1 - risk)), from the rows before t alone (one row of mean 1/2, variance 1/4
    added). Valid at every level, sharpest at `level`. The rows' order is drawn by `seed`. Waudby-Smith & Ramdas 2024, arXiv:2010.09686.
    """
    array, rows = checked(losses), len(np.asarray(losses))
    order = np.random.default_rng(seed).permutation(rows)
    count = np.arange(2.0, rows + 2)[:, None]
    ample, most = 2 * math.log(1 / level) / rows, BET / (1 - _risk(risk))
    out = np.empty(array.shape[1])
    for start in range(0, array.shape[1], STRIDE):
        loss = array[order, start : start + STRIDE].astype(np.float64)  # (rows, STRIDE)
        mean = (0.5 + loss.cumsum(0)) / count
        variance = (0.25 + ((loss - mean) ** 2).cumsum(0)) / count
        before = np.concatenate([np.full((1, loss.shape[1]), 0.25), variance[:-1]])
        bet = np.minimum(np.sqrt(ample / before), most)
        with np.errstate(over="ignore", under="ignore"):
            capital = (1 - bet * (loss - risk)).cumprod(0).max(0)
        out[start : start + STRIDE] = 1 / np.maximum(capital, 1)
    return out


def p_values(losses: ArrayLike, risk: float, bound: str, level: float = 0.05, seed: int = 0) -> Floats:
    """(settings,) p-values by the name of the bound. level and seed: see `waudby_smith_ramdas`; the others have no use for them."""
    _one_of("bound", bound, BOUNDS)
    if bound == "waudby_smith_ramdas":
        return waudby_smith_ramdas(losses, risk, level, seed)
    return {"hoeffding": hoeffding, "hoeffding_bentkus": hoeffding_bentkus, "clopper_pearson": clopper_pearson}[bound](losses, risk)


def _binomial_cdf(counts: NDArray[np.intp], rows: int, risk: float) -> Floats:
    """P(Bin(rows, risk) <= count) for every count, from one table of logarithms."""
    k = np.arange(1.0, counts.max() + 1)
    log_choose = np.concatenate([[0.0], np.log((rows - k + 1) / k).cumsum()])
    k = np.arange(len(log_choose))
    cdf = np.exp(log_choose + k * math.log(risk) + (rows - k) * math.log1p(-risk)).cumsum()
    return np.minimum(cdf, 1)[counts]


def _risk(risk: float) -> float:
    if not 0 < risk < 1:
        raise KnobError(f"risk={risk} is not a share of loss that can be promised. Allowed: above 0, below 1.")
    return risk


def _one_of(knob: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise KnobError(f"{knob}={given!r} is not known. Allowed: {', '.join(known)}.")


def _tested(test: Test, path: NDArray[np.intp]) -> Iterator[tuple[int, float]]:
    """(setting, p-value) along the path, tested as far as they are asked for."""
    for start in range(0, len(path), STRIDE):
        chunk = path[start : start + STRIDE]
        yield from zip(chunk.tolist(), test(chunk).tolist())


def fixed_sequence(test: Test, path: NDArray[np.intp], level: float) -> list[tuple[int, float]]:
    """(setting, p-value) along a path that was fixed without these rows, up to the first that fails: each test has the whole level."""
    return list(itertools.takewhile(lambda tested: tested[1] <= level, _tested(test, path)))


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


def rows_needed(losses: ArrayLike, risk: float, bound: str, level: float = 0.05, seed: int = 0) -> int | None:
    """How many rows, these (rows,) or more that are spread like them, pass one test at `level`; from [0.0], the least without a loss.

    None if their mean is not below risk, or if two million rows do not pass.
    """
    ranked = np.sort(checked(np.asarray(losses)[:, None])[:, 0])

    def passes(rows: int) -> bool:
        spread = ranked[(2 * np.arange(rows) + 1) * len(ranked) // (2 * rows)]
        return bool(p_values(spread[:, None], risk, bound, level, seed)[0] <= level)

    if ranked.mean() >= risk:
        return None
    low = high = len(ranked)
    while not passes(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high > low + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Promise:
    """What was promised, and from what.

    setting: the cheapest that passed, by index; None: nothing can be promised but full depth. passed: how many settings did. rows: those
    that tested; ordering_rows: those that only ordered the settings. observed, p_value, cost: of the setting, on the rows that tested.
    rows_if_lossless, rows_if_alike: set if nothing passed, rows in all that would do if they showed no loss, or losses spread like those
    of the setting tested first (the safest, for bonferroni); None if no number would.
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
    _one_of("procedure", procedure, PROCEDURES)
    if not 0 < confidence < 1:
        raise KnobError(f"confidence={confidence} is not a probability short of certainty. Allowed: above 0, below 1.")
    prices = _prices(cost, array, procedure)
    path, rows = _path(array, prices, procedure, seed)
    level = 1 - confidence
    each = level / len(path) if procedure == "bonferroni" else level

    def test(columns: NDArray[np.intp]) -> Floats:
        return p_values(array[np.ix_(rows, columns)], _risk(risk), bound, each, seed)

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
        counts = [None if n is None else n + (n - 1) // (ORDERING - 1) for n in counts]
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
    if len(array) < ORDERING:
        raise CalibrationError(f"{len(array)} rows cannot be split into an ordering third and a testing rest. Give a few hundred.")
    shuffled = np.random.default_rng([seed, 1]).permutation(len(array))
    first, rest = np.split(shuffled, [len(array) // ORDERING])
    return front(array[first].mean(0, dtype=np.float64), (prices[first] if len(prices) > 1 else prices).mean(0)), rest
