"""The cheapest thresholds that keep the asked share of quality: a ledger of similarities proposes settings, live runs decide.

The ledger of a full-depth pass says, for every stream, at which depth each row would leave under any threshold. From it come a handful of
thresholds per stream that differ in mean depth. Each is first run alone; then combinations are run from the cheapest on whose losses, added
up, still promise enough. What is chosen was always run, never only predicted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..cost import etr
from ..errors import CalibrationError, CheckpointError
from ..trace import Trace

NEVER = 1.0
BELOW = 1e-3  # how far below the least sureness a threshold lies at which all leave
Quality = Callable[[Sequence[Any], Sequence[Any]], float | Sequence[float]]


@dataclass(frozen=True)
class Outcome:
    """What one setting did on the calibration rows."""

    outputs: Sequence[Any]
    trace: Trace


@dataclass(frozen=True)
class Calibration:
    """What was asked, what was found. tried: every setting that was run, with its quality, ETR, and whether it kept enough.
    promise: `guarantee.Promise` as a dict, where one was asked for. budget, cost, front: where a mean cost was asked for instead, the share
    of full depth's; then `keep` is the share of quality that came out. cost: unit, share, and the `prices.Prices`; front: see `front`."""

    keep: float
    rows: int
    quality_full: float
    quality: float
    etr: float
    settings: dict[str, float]
    tried: list[dict[str, Any]] = field(default_factory=list)
    margin: float = 0.0
    promise: dict[str, Any] | None = None
    budget: float | None = None
    cost: dict[str, Any] | None = None
    front: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Calibration:
        """The inverse of to_dict. Raises CheckpointError for fields that this version does not know."""
        try:
            return Calibration(**body)
        except TypeError as problem:
            raise CheckpointError(f"This calibration was saved by another version of Exitwise ({problem}). Calibrate anew.") from None


def depths_at(sureness: Tensor, threshold: float, minimum: int = 1) -> Tensor:
    """Replay: the depth of every row for a threshold, from similarities (..., layers). NaN rows (nothing computed) give 0."""
    layers = sureness.shape[-1]
    ready = sureness > threshold
    if threshold >= NEVER:
        ready = torch.zeros_like(ready)
    ready[..., : minimum - 1] = False
    ready[..., -1] = True
    depth = ready.int().argmax(-1) + 1
    assert int(depth.max()) <= layers
    return torch.where(sureness.isnan().all(-1), 0, depth)


def proposals(sureness: Tensor, layers: int, minimum: int, count: int = 7) -> list[tuple[float, float]]:
    """(threshold, mean depth), deepest first: thresholds from the ledger whose mean depths are spread over minimum..layers.

    Where all that was measured is above 0, the last lies below it, so that every row leaves at once: a stream that is the same in all
    rows, as a prompt is, has no threshold among its own values at which it does, since rows leave strictly above one.
    """
    values = sureness[..., :-1].flatten()
    values = values[~values.isnan()]
    if not len(values):
        return [(NEVER, float(layers))]
    grid = sorted({round(float(q), 6) for q in torch.quantile(values.double(), torch.linspace(0, 1, 65).double())})
    if grid[0] >= BELOW:  # below 0, rules that count allow none
        grid.insert(0, round(grid[0] - BELOW, 6))
    found: dict[int, tuple[float, float]] = {}
    for threshold in grid:
        depth = depths_at(sureness, threshold, minimum).double()
        mean = float(depth[depth > 0].mean())
        slot = round((mean - minimum) / max(layers - minimum, 1) * (count - 1))
        wanted = minimum + slot * (layers - minimum) / max(count - 1, 1)
        if slot not in found or abs(mean - wanted) < abs(found[slot][1] - wanted):
            found[slot] = (threshold, mean)
    kept = [found[s] for s in sorted(found, reverse=True) if found[s][1] < layers]
    return [(NEVER, float(layers)), *kept]


@dataclass(frozen=True)
class Bar:
    """What a setting must clear: mean quality of at least `keep` times full depth's, with a margin against the luck of the rows.

    full: full depth's quality of each row. margin: standard errors of the mean of (quality - keep * full depth's) over the rows, by
    which that mean must stand above 0. Luck exceeds 1 in one case of six, for one setting. No guarantee: see `guarantee`.
    """

    full: Tensor
    keep: float
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise CalibrationError(f"keep={self.keep} is not a share of quality. Allowed: above 0, at most 1.")
        if not 0 <= self.margin < 100:
            raise CalibrationError(f"margin={self.margin} is not a number of standard errors. Allowed: 0 and above, such as 1.")
        if float(self.full.mean()) <= 0:
            raise CalibrationError(
                f"At full depth the quality is {float(self.full.mean())}: there is nothing to keep a share of. Check references and metric."
            )

    @property
    def room(self) -> float:
        """How much quality may be lost."""
        return (1 - self.keep) * float(self.full.mean())

    def luck(self, marks: Tensor) -> float:
        """What the luck of the rows may be worth, in units of quality: `margin` standard errors of the paired difference."""
        if not self.margin or len(marks) < 2:
            return 0.0
        return self.margin * float((marks - self.keep * self.full).std()) / len(marks) ** 0.5

    def held(self, marks: Tensor) -> bool:
        """Whether rows of this quality clear the bar."""
        return float(marks.mean()) - self.luck(marks) >= self.keep * float(self.full.mean()) - 1e-12  # rounding of equal means


def marks_of(given: float | Sequence[float], rows: int, margin: float) -> Tensor:
    """Quality of each row; one figure for all rows stands for itself, and allows no margin."""
    if isinstance(given, Sequence | Tensor):
        if len(given) != rows:
            raise CalibrationError(f"The quality function gave {len(given)} figures for {rows} rows. Give one figure, or one per row.")
        marks = torch.as_tensor(given, dtype=torch.float64)
    elif margin:
        raise CalibrationError("A margin needs a quality for each row, but the quality function gave one figure. Return one per row.")
    else:
        marks = torch.full((1,), float(given), dtype=torch.float64)
    if not bool(marks.isfinite().all()):
        place = int((~marks.isfinite()).nonzero()[0])
        raise CalibrationError(f"The quality of row {place} is {float(marks[place])}. Leave such rows out, or mend the metric.")
    return marks


def judged(quality: Quality | None, full: Outcome) -> Quality:
    """The quality function, by default 1.0 where the output equals full depth's."""
    return quality or (lambda outputs, _: [float(a == b) for a, b in zip(outputs, full.outputs, strict=True)])


def one_wish(confidence: float | None, budget: float | None, margin: float) -> None:
    """Raises CalibrationError for wishes that exclude each other."""
    if budget is not None and (confidence is not None or margin):
        raise CalibrationError("A budget fixes the cost and promises no quality. Leave out the budget, or the confidence and the margin.")
    if confidence is not None and margin:
        raise CalibrationError("A promise has its own allowance for luck. Leave out the margin, or the confidence.")


def enough(rows: int, streams: Mapping[str, int]) -> None:
    """Raises CalibrationError if there are fewer rows than the deepest stream has exits: then chance alone sets the thresholds."""
    exits = max(streams.values(), default=1)
    if not rows:
        raise CalibrationError("There are no calibration rows. Give a few hundred.")
    if rows < exits:
        raise CalibrationError(f"{rows} calibration rows for {exits} exits are too few to tell them apart. Give a few hundred.")


def search(
    run: Callable[[dict[str, Any], bool], Outcome],
    rows: Sequence[Any],
    streams: Mapping[str, int],
    keep: float,
    quality: Quality | None = None,
    trials: int = 24,
    minimum: int = 1,
    margin: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """See `Engine.calibrate`. run: (settings, record) -> Outcome. At most `trials` settings are run, besides full depth."""
    enough(len(rows), streams)
    Bar(torch.ones(1), keep, margin)  # refuse before the long first run
    full = run(dict.fromkeys(streams, NEVER), True)
    judge = judged(quality, full)
    bar = Bar(marks_of(judge(full.outputs, rows), len(rows), margin), keep, margin)
    best = float(bar.full.mean())
    tried: list[dict[str, Any]] = []
    lucks: list[float] = [0.0]

    def attempt(settings: dict[str, float]) -> dict[str, Any]:
        out = run(settings, False)
        marks = marks_of(judge(out.outputs, rows), len(rows), margin)
        entry = {"settings": settings, "quality": float(marks.mean()), "etr": etr(out.trace), "held": bar.held(marks)}
        lucks.append(bar.luck(marks))
        tried.append(entry)
        if progress is not None:
            progress(len(tried), trials)
        return entry

    each = max(1, min(6, trials * 3 // 4 // max(len(streams), 1)))  # thresholds of a stream alone; the rest is for combinations
    proposed = {s: proposals(full.trace.sureness[s], n, minimum, each + 1) for s, n in streams.items() if s in full.trace.sureness}
    base = dict.fromkeys(streams, NEVER)
    loss = {s: {NEVER: 0.0} for s in proposed}
    for stream, options in proposed.items():
        for threshold, _ in options[1:]:
            if len(tried) >= trials:
                break
            entry = attempt({**base, stream: threshold})
            loss[stream][threshold] = best - entry["quality"]
            if entry["quality"] < best - 3 * bar.room and entry["quality"] < 0.9 * best:
                break  # deeper cuts of this stream can only lose more
    luck = sorted(lucks)[len(lucks) // 2]
    for promised, settings in _combos(proposed, loss, streams):
        if len(tried) >= trials:
            break
        wanted = {**base, **settings}
        if wanted == base:
            break  # full depth, which is known
        known = next((t for t in tried if t["settings"] == wanted), None)
        if known is None and promised + luck <= 1.5 * bar.room + luck / 2:
            known = attempt(wanted)
        if known is not None and known["held"]:
            break  # the combinations come by rising cost
    good = [t for t in tried if t["held"]]
    fallback: dict[str, Any] = {"settings": base, "quality": best, "etr": etr(full.trace)}
    chosen = max(good, key=lambda t: t["etr"], default=fallback)
    return Calibration(keep, len(rows), best, chosen["quality"], chosen["etr"], dict(chosen["settings"]), tried, margin)


def _combos(
    proposed: Mapping[str, list[tuple[float, float]]], loss: Mapping[str, Mapping[float, float]], streams: Mapping[str, int]
) -> list[tuple[float, dict[str, float]]]:
    """(loss promised, settings) of all combinations of thresholds that were run alone, cheapest first."""
    names = list(proposed)
    out = []
    for choice in itertools.product(*([o for o in proposed[s] if o[0] in loss[s]] for s in names)):
        settings = {s: t for s, (t, _) in zip(names, choice, strict=True)}
        encoder = [d for s, (_, d) in zip(names, choice, strict=True) if s != "decoder"]
        decoder = [d for s, (_, d) in zip(names, choice, strict=True) if s == "decoder"]
        cost = sum(encoder) / max(len(encoder), 1) + sum(decoder)
        promised = sum(max(0.0, loss[s][t]) for s, t in settings.items())
        out.append((cost, promised, settings))
    return [(promised, settings) for _, promised, settings in sorted(out, key=lambda c: c[0])]
