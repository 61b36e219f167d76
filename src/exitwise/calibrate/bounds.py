"""What is lost, and how it is bounded: losses in [0, 1], and p-values for "their mean on new rows is above the risk".

Every bound holds for independent rows whatever their law, and at every number of rows. `guarantee` makes a promise of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError, KnobError

Losses = NDArray[Any]
Floats = NDArray[np.float64]

BOUNDS = ("waudby_smith_ramdas", "hoeffding_bentkus", "clopper_pearson", "hoeffding")
BET = 0.75  # the most that a bet may lose of its capital in one row; Waudby-Smith & Ramdas recommend 1/2 or 3/4
STRIDE = 128  # settings that are tested at once
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
    if any(part.dtype.kind in "fc" and np.isnan(part).any() for part in (ours, theirs)):
        raise CalibrationError("There is NaN among the answers or scores. Leave those rows out, or mend the metric.")
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
    return np.exp(-2 * len(array) * np.maximum(checked_risk(risk) - array.mean(0, dtype=np.float64), 0) ** 2)


def hoeffding_bentkus(losses: ArrayLike, risk: float) -> Floats:
    """(settings,) p-values: the least of exp(-n h1(min(mean, risk), risk)) and e P(Bin(n, risk) <= ceil(n mean)), at most 1.

    h1(a, b) = a log(a/b) + (1 - a) log((1 - a)/(1 - b)). Bates et al. 2021, arXiv:2101.02703; Angelopoulos et al. 2021, arXiv:2110.01052.
    """
    array = checked(losses)
    total = array.sum(0, dtype=np.float64)
    mean = np.minimum(total / len(array), checked_risk(risk))
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
    return _binomial_cdf(array.sum(0, dtype=np.intp), len(array), checked_risk(risk))


def waudby_smith_ramdas(losses: ArrayLike, risk: float, level: float = 0.05, seed: int = 0) -> Floats:
    """(settings,) p-values 1 / max_t K_t, at most 1, of the capital K_t = prod_{i<=t} (1 - bet_i (loss_i - risk)) of one who bets on less.

    bet_t = min(sqrt(2 log(1/level) / (n var_{t-1})), 3/4 / (1 - risk)), from the rows before t alone (one row of mean 1/2, variance 1/4
    added). Valid at every level, sharpest at `level`. The rows' order is drawn by `seed`. Waudby-Smith & Ramdas 2024, arXiv:2010.09686.
    """
    array, rows = checked(losses), len(np.asarray(losses))
    order = np.random.default_rng(seed).permutation(rows)
    count = np.arange(2.0, rows + 2)[:, None]
    ample, most = 2 * math.log(1 / level) / rows, BET / (1 - checked_risk(risk))
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
    one_of("bound", bound, BOUNDS)
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


def checked_risk(risk: float) -> float:
    """The risk itself. Raises KnobError if it is not above 0 and below 1."""
    if not 0 < risk < 1:
        raise KnobError(f"risk={risk} is not a share of loss that can be promised. Allowed: above 0, below 1.")
    return risk


def one_of(knob: str, given: str, known: tuple[str, ...]) -> None:
    """Raises KnobError for a name that is not among those allowed."""
    if given not in known:
        raise KnobError(f"{knob}={given!r} is not known. Allowed: {', '.join(known)}.")


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
