"""Thresholds with a promise, by live runs: for captions, and for every other output whose loss is a number in [0, 1] for each row.

Learn-then-Test (Angelopoulos et al. 2021, arXiv:2110.01052), by fixed-sequence testing as Schuster et al. 2022 (CALM, arXiv:2207.07061)
calibrate. A third of the rows proposes settings and orders them; the others test them one by one, from the safest to the cheapest, and
the first that fails ends it. Each test costs a run, so that few settings are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cost import etr
from ..errors import CalibrationError, KnobError
from ..trace import Trace
from .bounds import BOUNDS, Floats, checked, metric_loss, one_of, p_values, rows_needed
from .budget import NEVER, Calibration, Outcome, Quality, enough, judged, marks_of, search
from .guarantee import Promise, fixed_sequence, front, split_rows, with_ordering

Run = Callable[[dict[str, Any], bool, Sequence[Any]], Outcome]
Loss = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Sequence[float]]

DISAGREEMENT = "an output that is not full depth's"


@dataclass(frozen=True)
class Asked:
    """What is to be promised.

    keep, confidence, bound: as in `promised`. loss: (outputs at full depth, early outputs, rows) -> one number in [0, 1] per row; then its
    mean is to be at most 1 - keep. Without it the loss of a row is its drop of `quality` over `scale`, cut to 0..1: a gain does not make up
    for another row's drop, and a drop of more than `scale` counts as `scale` (default: full depth's mean on the ordering rows); its
    mean is to be at most (1 - keep) of that mean. trials: most settings that are run. seed: of the split (`guarantee.split_rows`).
    """

    keep: float = 0.99
    confidence: float = 0.95
    bound: str = "waudby_smith_ramdas"
    loss: Loss | None = None
    quality: Quality | None = None
    scale: float | None = None
    trials: int = 24
    minimum: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise CalibrationError(f"keep={self.keep} cannot be promised. Allowed: above 0 and below 1, such as 0.95.")
        if not 0 < self.confidence < 1:
            raise KnobError(f"confidence={self.confidence} is not a probability short of certainty. Allowed: above 0, below 1.")
        if self.trials < 2:
            raise KnobError(f"trials={self.trials} leaves nothing to test what was proposed. Allowed: 2 and more, such as 24.")
        one_of("bound", self.bound, BOUNDS)


def promised_runs(
    run: Run, rows: Sequence[Any], streams: Mapping[str, int], asked: Asked, progress: Callable[[int, int], None] | None = None
) -> Calibration:
    """The cheapest thresholds of which it holds, with `confidence`, that the mean loss of new rows is at most what was asked.

    run: (settings, record, rows) -> Outcome. Where nothing can be promised all thresholds are 1, and `promise` says how many rows would
    do. quality and etr are those of the testing rows. Raises CalibrationError for too few rows, or for losses that are none.
    """
    enough(len(rows), streams)
    order, test = split_rows(len(rows), asked.seed)
    enough(len(order), streams)
    proposed = _proposed(run, [rows[i] for i in order], streams, asked, progress)
    testing = [rows[i] for i in test]
    full = run(dict.fromkeys(streams, NEVER), False, testing)
    outcomes: dict[int, tuple[Outcome, Floats]] = {}

    def tested(places: NDArray[np.intp]) -> Floats:
        """Run a setting on the testing rows; its p-value."""
        place = int(places[0])
        outcome = run(dict(proposed.path[place]), False, testing)
        losses = proposed.losses(full.outputs, outcome.outputs, testing)
        outcomes[place] = outcome, losses
        if progress is not None:
            progress(proposed.tried + len(outcomes), asked.trials)
        return p_values(losses[:, None], proposed.risk, asked.bound, 1 - asked.confidence, asked.seed)

    path = np.arange(len(proposed.path))
    passed = fixed_sequence(tested, path, 1 - asked.confidence, at_once=1)
    told = _told(proposed, asked, passed, {k: losses for k, (_, losses) in outcomes.items()}, len(test), len(order))
    chosen = dict.fromkeys(streams, NEVER) if told.setting is None else proposed.path[told.setting]
    outcome = full if told.setting is None else outcomes[told.setting][0]
    judge = judged(asked.quality, full)
    best, kept = (float(marks_of(judge(o.outputs, testing), len(testing), 0.0).mean()) for o in (full, outcome))
    tried = [{"settings": proposed.path[k], "etr": etr(o.trace), "loss": float(losses.mean())} for k, (o, losses) in outcomes.items()]
    return Calibration(asked.keep, len(rows), best, kept, etr(outcome.trace), dict(chosen), tried, promise=told.to_dict())


@dataclass(frozen=True)
class _Proposed:
    """A path of settings from the ordering rows, safest first, their costs there, the risk, and how a row's loss is measured."""

    path: list[dict[str, float]]
    cost: list[float]
    risk: float
    said: str
    losses: Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Floats]
    tried: int


def _proposed(
    run: Run, rows: Sequence[Any], streams: Mapping[str, int], asked: Asked, progress: Callable[[int, int], None] | None
) -> _Proposed:
    """Half of the trials search on these rows; what they found that is not hopeless is the path, cut to the trials that are left."""
    seen: list[tuple[dict[str, Any], Outcome]] = []

    def noted(settings: dict[str, Any], record: bool) -> Outcome:
        outcome = run(settings, record, rows)
        # similarities of all rows are big and not needed again
        seen.append((dict(settings), Outcome(outcome.outputs, _lean(outcome.trace))))
        return outcome

    budget = asked.trials // 2
    found = search(noted, rows, streams, asked.keep, asked.quality, budget, asked.minimum, 0.0, progress)
    (_, full), tried = seen[0], seen[1:]
    losses, risk, said = _losses(full, rows, asked, found.quality_full)
    mean = np.array([losses(full.outputs, outcome.outputs, rows).mean() for _, outcome in tried])
    cost = np.array([1 - etr(outcome.trace) for _, outcome in tried])
    if not tried:
        return _Proposed([], [], risk, said, losses, 0)
    ordered = [k for k in front(mean, cost).tolist() if mean[k] <= 1.5 * risk] or [int(mean.argmin())]
    left = asked.trials - len(tried)
    ordered = [ordered[k] for k in sorted({round(k) for k in np.linspace(0, len(ordered) - 1, min(left, len(ordered))).tolist()})]
    return _Proposed([tried[k][0] for k in ordered], [float(cost[k]) for k in ordered], risk, said, losses, len(tried))


def _lean(trace: Trace) -> Trace:
    return replace(trace, sureness={})


def _losses(
    full: Outcome, rows: Sequence[Any], asked: Asked, reference: float
) -> tuple[Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Floats], float, str]:
    """(losses of rows, the risk that is asked, what the loss is in words)."""
    if asked.loss is not None:
        given = asked.loss
        return lambda late, early, items: _checked(given(late, early, items), len(items)), 1 - asked.keep, "what the loss function gives"
    if asked.quality is None:
        return lambda late, early, items: np.array([float(a != b) for a, b in zip(late, early, strict=True)]), 1 - asked.keep, DISAGREEMENT
    judge, scale = asked.quality, reference if asked.scale is None else asked.scale
    risk = (1 - asked.keep) * reference / scale if scale > 0 else 0.0
    if not 0 < risk < 1:
        raise KnobError(f"scale={scale} is too small: of a mean quality of {reference:.4g}, {1 - asked.keep:.3g} may be lost. Give more.")

    def drop(late: Sequence[Any], early: Sequence[Any], items: Sequence[Any]) -> Floats:
        marks = [marks_of(judge(outputs, items), len(items), 1.0).numpy() for outputs in (late, early)]
        return np.asarray(metric_loss(marks[0], marks[1][:, None], scale)[:, 0])

    return (
        drop,
        risk,
        f"the drop of an item's quality against full depth's, as a share of {scale:.4g}: gains do not count, a greater drop counts as 1",
    )


def _checked(losses: Sequence[float], rows: int) -> Floats:
    array = checked(np.asarray(losses, dtype=np.float64)[:, None])[:, 0]
    if len(array) != rows:
        raise CalibrationError(f"The loss function gave {len(array)} figures for {rows} rows. Give one for each row.")
    return array


def _told(
    proposed: _Proposed, asked: Asked, passed: list[tuple[int, float]], losses: Mapping[int, Floats], rows: int, ordering: int
) -> Promise:
    """What can be said after the tests."""
    said = Promise(
        None, proposed.risk, asked.confidence, asked.bound, "fixed_sequence", len(proposed.path), len(passed), rows, ordering, asked.seed,
        loss=proposed.said,
    )  # fmt: skip
    if passed:
        setting, p_value = min(passed, key=lambda tested: proposed.cost[tested[0]])
        return replace(
            said, setting=setting, observed=float(losses[setting].mean()), p_value=p_value, cost=proposed.cost[setting]
        )  # fmt: skip
    needed = [rows_needed(each, proposed.risk, asked.bound, 1 - asked.confidence, asked.seed) for each in (np.zeros(1), *losses.values())]
    counts = [with_ordering(n) for n in needed[:2]]
    return replace(said, rows_if_lossless=counts[0], rows_if_alike=counts[1] if losses else None)
