"""Many settings of a ledger at once: how many answers are right and how many rows run each layer, without the model and row for row.

Under a rising threshold a row of the decoder goes one layer deeper wherever the threshold reaches the highest similarity that it has
measured so far. So one count of these places, added up along the thresholds, gives all thresholds at once; `Ledger.depths` is the same
for one setting, and equal to it (tested).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .budget import NEVER, depths_at
from .prices import Prices, ran_layers

if TYPE_CHECKING:
    from .ledger import Ledger

DECODER = "decoder"
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """What every setting did: one of `choices` for the encoder's streams with one of `last` for the decoder.

    right: (choices, last) right answers. kept: those of them that are right at full depth too. encoder: stream -> (choices, layers) rows
    that ran each layer. decoder: (choices, last, layers) the same. rows: of the ledger; full: those right at full depth.
    """

    choices: list[dict[str, float]]
    last: list[float]
    rows: int
    full: int
    right: Counts
    kept: Counts
    encoder: dict[str, Counts]
    decoder: Counts

    def settings(self, choice: int, last: int) -> dict[str, float]:
        """The thresholds at a place."""
        return {**self.choices[choice], DECODER: self.last[last]}

    def etr(self) -> Floats:
        """(choices, last) expected time reduction, as `Ledger.etr`."""
        ran = sum((counts.sum(-1) for counts in self.encoder.values()), np.zeros(len(self.choices), np.int64))
        layers = {s: counts.shape[-1] for s, counts in self.encoder.items()}
        streams = max(len(layers), 1)
        most = sum(layers.values()) / streams + self.decoder.shape[-1]
        return 1 - (ran[:, None] / streams + self.decoder.sum(-1)) / self.rows / most

    def share(self, prices: Prices) -> Floats:
        """(choices, last) cost as a share of full depth's."""
        cost = np.full(self.right.shape, prices.fixed * self.rows)
        for stream, counts in self.encoder.items():
            cost += (counts @ np.array(prices.layers[stream]))[:, None]
        cost += self.decoder @ np.array(prices.layers[DECODER])
        return cost / prices.whole({s: [self.rows] * len(p) for s, p in prices.layers.items()}, self.rows)


def replay(ledger: Ledger, choices: Sequence[Mapping[str, float]], last: Sequence[float], minimum: int = 1) -> Replay:
    """Every choice of the encoder's thresholds with every threshold of the decoder, in any order. Exactly `Ledger.depths` and `marks`."""
    rows, layers = ledger.rows, ledger.layers[DECODER]
    whole = ledger.marks(ledger.whole()).bool()
    front = torch.argsort(~whole, stable=True)  # rows right at full depth first, so that they are counted apart
    book, full = ledger.select(front), int(whole.sum())
    order = np.argsort(_levels(last, torch.float64).numpy(), kind="stable")
    breaks, first, void = _breaks(book, _levels([last[i] for i in order], book.decoder.dtype), minimum)
    depths = {s: {t: depths_at(book.encoder[s], t, minimum) for t in {c[s] for c in choices}} for s in book.streams}
    shape = tuple(book.layers[s] for s in book.streams)
    right, kept = np.zeros((2, len(choices), len(last)), np.int64)
    ran = np.zeros((len(choices), len(last), layers), np.int64)
    for number, choice in enumerate(choices):
        cell = np.zeros(rows, np.int64)
        for stream, size in zip(book.streams, shape, strict=True):
            cell = cell * size + (depths[stream][choice[stream]].numpy() - 1) % size  # depth 0 (nothing computed) reads the last place
        place = cell * rows + np.arange(rows)
        split = [_counted(breaks[part], len(last), layers) for part in (place[:full], place[full:])]
        ran[number, order] = _reached(split[0] + split[1], rows) - int(void[place].sum())
        gained = [first[part].sum() + _gained(each) for part, each in zip((place[:full], place[full:]), split, strict=True)]
        kept[number, order], right[number, order] = gained[0], gained[0] + gained[1]
    counts = {s: {t: ran_layers(d, book.layers[s]).numpy() for t, d in depths[s].items()} for s in book.streams}
    encoder = {s: np.stack([counts[s][c[s]] for c in choices]) for s in book.streams}
    return Replay([dict(c) for c in choices], list(last), rows, full, right, kept, encoder, ran)


def _levels(thresholds: Sequence[float], kind: torch.dtype) -> Tensor:
    """The thresholds as they are compared with similarities of this type; infinite where they never leave."""
    return torch.tensor([t if t < NEVER else float("inf") for t in thresholds], dtype=kind)


def _breaks(book: Ledger, levels: Tensor, minimum: int) -> tuple[NDArray[np.signedinteger], Counts, NDArray[np.bool_]]:
    """For every encoder cell and row (flat): a number for each layer before the last, whether the first is right, and whether nothing was
    measured. The number is (layer, first level at which the row goes deeper, 1 + what that adds to the right answers), counted through."""
    sure = book.decoder.reshape(-1, book.decoder.shape[-1])
    right = book.right.reshape(-1, book.right.shape[-1])
    void = sure.isnan().all(-1)
    highest = sure[:, :-1].nan_to_num(nan=-float("inf"), posinf=float("inf"), neginf=-float("inf"))
    highest[:, : minimum - 1] = -float("inf")
    highest = highest.cummax(-1).values
    highest[void] = -float("inf")
    index = torch.bucketize(highest, levels, out_int32=True)
    index += torch.arange(index.shape[1], dtype=torch.int32) * (len(levels) + 1)
    index *= 3
    index += 1 + right[:, 1:].to(torch.int8) - right[:, :-1].to(torch.int8)
    if index.shape[1] * (len(levels) + 1) * 3 < 1 << 15:
        index = index.short()  # the rows of many cells are read again and again
    return index.numpy(), right[:, 0].long().numpy(), void.numpy()


def _counted(breaks: NDArray[np.signedinteger], levels: int, layers: int) -> Counts:
    """(layers - 1, levels, 3) how many rows go deeper from each layer at each level, with what gain: -1, 0, 1."""
    counted = np.bincount(breaks.ravel(), minlength=(layers - 1) * (levels + 1) * 3)
    return counted.reshape(layers - 1, levels + 1, 3)[:, :levels]


def _reached(counted: Counts, rows: int) -> Counts:
    """(levels, layers) rows that ran each layer."""
    deeper = counted.sum(-1).cumsum(1).T
    return np.concatenate([np.full((len(deeper), 1), rows), deeper], 1)


def _gained(counted: Counts) -> Counts:
    """(levels,) right answers more than at the first layer."""
    return np.asarray((counted[..., 2] - counted[..., 0]).sum(0).cumsum())
