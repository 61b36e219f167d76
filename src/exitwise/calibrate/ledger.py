"""Every row at every exit, for answers that one pass of the decoder decides: any thresholds are then judged without running the model.

What a decoder says depends on where the encoder's streams left, so the ledger holds the decoder's similarities and answers for
every pair of
encoder depths. Replaying it gives the depths and answers of a live run exactly (tested).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..criteria import Fixed
from ..errors import CalibrationError
from ..run.walk import attached
from .budget import NEVER, Bar, Calibration, depths_at, enough
from .replay import DECODER as DECODER
from .replay import Replay, replay

if TYPE_CHECKING:
    from ..engine import Engine


@dataclass(frozen=True)
class Ledger:
    """streams: the encoder's, in order. encoder: stream -> (rows, layers) similarities. decoder: (depth of stream 1, ..., rows, layers)
    similarities, and right: the same shape, true where the answer read out at that exit is right. layers: stream -> n."""

    streams: tuple[str, ...]
    layers: dict[str, int]
    encoder: dict[str, Tensor]
    decoder: Tensor
    right: Tensor

    @property
    def rows(self) -> int:
        """Rows recorded."""
        return self.decoder.shape[-2]

    @property
    def full(self) -> float:
        """Share of right answers at full depth."""
        return float(self.right[tuple(self.layers[s] - 1 for s in self.streams)][:, -1].double().mean())

    def depths(self, thresholds: Mapping[str, float], minimum: int = 1) -> dict[str, Tensor]:
        """stream -> (rows,) depths under these thresholds."""
        out = {s: depths_at(self.encoder[s], thresholds.get(s, NEVER), minimum) for s in self.streams}
        place = (*(out[s] - 1 for s in self.streams), torch.arange(self.rows))
        out[DECODER] = depths_at(self.decoder[place], thresholds.get(DECODER, NEVER), minimum)
        return out

    def marks(self, depths: Mapping[str, Tensor]) -> Tensor:
        """(rows,) 1.0 where the answer is right, for given depths of every row."""
        place = (*(depths[s] - 1 for s in self.streams), torch.arange(self.rows), depths[DECODER] - 1)
        return self.right[place].double()

    def etr(self, depths: Mapping[str, Tensor]) -> float:
        """Expected time reduction for given depths of every row, with the mean of the encoder's streams."""
        streams = max(len(self.streams), 1)
        ran = sum(int(depths[s].sum()) for s in self.streams) / streams + int(depths[DECODER].sum())
        most = sum(self.layers[s] for s in self.streams) / streams + self.layers[DECODER]
        return 1 - ran / self.rows / most

    def whole(self) -> dict[str, Tensor]:
        """Full depth for every row."""
        return {s: torch.full((self.rows,), self.layers[s]) for s in (*self.streams, DECODER)}

    def judge(self, depths: Mapping[str, Tensor]) -> tuple[float, float]:
        """(share of right answers, ETR) for given depths of every row."""
        return float(self.marks(depths).mean()), self.etr(depths)

    def static(self, **depths: int) -> tuple[float, float]:
        """The same for one fixed depth per stream."""
        return self.judge({s: torch.full((self.rows,), d) for s, d in depths.items()})

    def select(self, rows: Tensor) -> Ledger:
        """The ledger of some rows, by number, in the order given."""
        encoder = {s: v[rows] for s, v in self.encoder.items()}
        return Ledger(self.streams, self.layers, encoder, self.decoder[..., rows, :], self.right[..., rows, :])

    @staticmethod
    def cat(parts: Sequence[Ledger]) -> Ledger:
        """One ledger of several batches."""
        first = parts[0]
        encoder = {s: torch.cat([p.encoder[s] for p in parts]) for s in first.streams}
        return Ledger(
            first.streams, first.layers, encoder, torch.cat([p.decoder for p in parts], -2), torch.cat([p.right for p in parts], -2)
        )


def record(engine: Engine, batches: Iterable[tuple[dict[str, Any], Callable[[Tensor], Tensor]]]) -> Ledger:
    """The ledger of these batches: (inputs of the model with decoder_input_ids, logits (rows, vocabulary) -> (rows,) right or not).

    The encoder runs once per batch for its similarities, the model once for every combination of encoder depths. Raises CalibrationError
    if the family has no read-out or the model no decoder.
    """
    kinds = engine.streams
    streams = tuple(s for s, kind in kinds.items() if kind == "encoder")
    readout = engine.family.readout
    if readout is None or DECODER not in kinds:
        raise CalibrationError(
            "A ledger of answers needs a decoder and a read-out. Give the family a `readout`, or calibrate by live runs."
        )
    parts = []
    for inputs, judge in batches:
        combos = list(itertools.product(*(range(1, engine.layers[s] + 1) for s in streams)))
        cells = [_decoded(engine, inputs, dict(zip(streams, combo, strict=True))) for combo in combos]
        shape = tuple(engine.layers[s] for s in streams)
        sims = torch.stack([sure for sure, _, _ in cells]).view(*shape, *cells[0][0].shape)
        right = torch.stack([torch.stack([judge(readout(engine.model, state)) for state in states], -1) for _, states, _ in cells])
        full = cells[-1][2]
        parts.append(Ledger(streams, engine.layers, {s: full[s] for s in streams}, sims, right.view(*shape, *right.shape[1:]).bool().cpu()))
    if not parts:
        raise CalibrationError("There are no calibration rows. Give a few hundred.")
    return Ledger.cat(parts)


def remeasured(ledger: Ledger, engine: Engine, batches: Iterable[dict[str, Any]]) -> Ledger:
    """The same answers under another rule for the encoder's exits: only its similarities are measured anew, one run per batch.

    batches: the inputs of the ledger's rows, in its order. The answers must not depend on the rule but through the depths.
    """
    traces = [engine.run(record=True, **inputs).trace for inputs in batches]
    encoder = {s: torch.cat([trace.sureness[s] for trace in traces]) for s in ledger.streams}
    if any(len(measured) != ledger.rows for measured in encoder.values()):
        raise CalibrationError(f"The ledger has {ledger.rows} rows, other batches were given. Give the batches that it was made of.")
    return replace(ledger, encoder=encoder)


def _decoded(engine: Engine, inputs: dict[str, Any], depths: Mapping[str, int]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """((rows, layers) similarities of the decoder, last token's state after each layer, similarities of the encoder) at fixed
    encoder depths."""
    plan = engine.plan()
    rules = dict(plan.rules)
    scope = rules[DECODER]
    rules.update({s: _Recorded(rules[s], d) for s, d in depths.items()})
    plan = replace(plan, rules={**rules, DECODER: _Recorded(scope, engine.layers[DECODER])}, record=True, keep_states=True)
    with torch.no_grad(), attached(engine.model, engine.family, plan) as session:
        engine.model(**inputs)
    trace = session.trace
    return trace.sureness[DECODER][:, 0], session.states, {s: trace.sureness[s] for s in depths}


class _Recorded(Fixed):
    """A fixed depth that measures as another rule would."""

    def __init__(self, rule: Any, depth: int) -> None:
        super().__init__(depth)
        object.__setattr__(self, "rule", rule)

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        out: list[float] = self.rule.sureness(before, after, mask)  # type: ignore[attr-defined]
        return out


def thresholds_of(sureness: Tensor, layers: int, count: int, minimum: int = 1) -> list[float]:
    """Thresholds at `count` quantiles of what was measured before the last layer, and one that never leaves."""
    values = sureness[..., minimum - 1 : layers - 1].flatten()
    values = values[~values.isnan()]
    if len(values) > 200_000:
        values = values[torch.linspace(0, len(values) - 1, 200_000, dtype=torch.float64).long()]
    if not len(values):
        return [NEVER]
    return [*sorted(set(torch.quantile(values.double(), torch.linspace(0, 1, count).double()).tolist())), NEVER]


def grid(ledger: Ledger, encoder: int, minimum: int = 1, tied: bool = False) -> list[dict[str, float]]:
    """All combinations of thresholds of the encoder's streams, at `encoder` quantiles of each. tied: one threshold for all of them."""
    own = [thresholds_of(ledger.encoder[s], ledger.layers[s], encoder, minimum) for s in ledger.streams]
    combos = zip(*[own[0]] * len(own), strict=True) if tied else itertools.product(*own)
    return [dict(zip(ledger.streams, choice, strict=True)) for choice in combos]


def cheapest(
    ledger: Ledger,
    keep: float,
    encoder: int = 14,
    decoder: int = 60,
    minimum: int = 1,
    margin: float = 0.0,
    tied: bool = False,
) -> Calibration:
    """The thresholds of the greatest ETR that keep `keep` of full depth's share of right answers, over a grid of quantiles.

    encoder, decoder: points of the grid. margin: see `budget.Bar`. tied: one threshold for all of the encoder's streams.
    """
    enough(ledger.rows, ledger.layers)
    if ledger.full <= 0:
        raise CalibrationError("At full depth no answer is right: there is nothing to keep a share of. Check labels and candidates.")
    bar = Bar(ledger.marks(ledger.whole()), keep, margin)
    last = thresholds_of(ledger.decoder, ledger.layers[DECODER], decoder, minimum)
    found = replay(ledger, grid(ledger, encoder, minimum, tied), last, minimum)
    saved, held = found.etr(), _held(bar, found)
    best: tuple[float, float, dict[str, float]] = (0.0, ledger.full, dict.fromkeys((*ledger.streams, DECODER), NEVER))
    tried: list[dict[str, Any]] = []
    for choice in np.flatnonzero(held.any(1)).tolist():
        place = int(np.where(held[choice], saved[choice], -1).argmax())
        entry = {"settings": found.settings(choice, place), "quality": float(found.right[choice, place]) / found.rows}
        tried.append({**entry, "etr": float(saved[choice, place]), "held": True})
        if tried[-1]["etr"] > best[0]:
            best = tried[-1]["etr"], tried[-1]["quality"], tried[-1]["settings"]
    return Calibration(keep, ledger.rows, ledger.full, best[1], best[0], best[2], tried, margin)


def sweep(ledger: Ledger, encoder: int = 14, decoder: int = 60, minimum: int = 1, tied: bool = False) -> list[dict[str, Any]]:
    """Every setting of the grid that `cheapest` looks at, with its quality (share of right answers) and ETR."""
    last = thresholds_of(ledger.decoder, ledger.layers[DECODER], decoder, minimum)
    found = replay(ledger, grid(ledger, encoder, minimum, tied), last, minimum)
    shares, saved = found.right / found.rows, found.etr()
    return [
        {"settings": found.settings(choice, place), "quality": float(shares[choice, place]), "etr": float(saved[choice, place])}
        for choice, place in np.ndindex(*shares.shape)
    ]


def _held(bar: Bar, found: Replay) -> NDArray[np.bool_]:
    """(choices, last) what `Bar.held` says of answers that are right or not, from their counts alone."""
    rows, keep = found.rows, bar.keep
    luck = np.zeros(found.right.shape)
    if bar.margin and rows > 1:
        total = found.right - keep * found.full
        squares = found.right - 2 * keep * found.kept + keep**2 * found.full
        luck = bar.margin * np.sqrt(np.maximum(squares - total**2 / rows, 0) / (rows - 1) / rows)
    return np.asarray(found.right / rows - luck >= keep * (found.full / rows) - 1e-12)


def best_static(ledger: Ledger, etr: float) -> tuple[dict[str, int], float, float]:
    """(depths, share of right answers, ETR) of the best fixed depths that cost no more than a run with this ETR."""
    names = (*ledger.streams, DECODER)
    found: tuple[dict[str, int], float, float] | None = None
    for combo in itertools.product(*(range(1, ledger.layers[s] + 1) for s in names)):
        depths = dict(zip(names, combo, strict=True))
        quality, saved = ledger.static(**depths)
        if saved >= etr - 1e-9 and (found is None or quality > found[1]):
            found = depths, quality, saved
    assert found is not None  # depth 1 everywhere saves the most there is
    return found
