"""Counts of many settings at once are those of one setting after the other, and of a loop that anyone can read."""

import itertools

import numpy as np
import pytest
import torch

from exitwise.calibrate.budget import NEVER, Bar
from exitwise.calibrate.ledger import DECODER, Ledger, _held, cheapest, grid, thresholds_of
from exitwise.calibrate.prices import Prices
from exitwise.calibrate.replay import replay


def noise(seed: int, rows: int = 40, streams: dict[str, int] | None = None, decoder: int = 5, coarse: bool = True) -> Ledger:
    """A ledger of noise. coarse: few different similarities, so that ties abound; some are NaN, and some rows wholly."""
    dice = torch.Generator().manual_seed(seed)
    streams = {"image": 3, "text": 4} if streams is None else streams

    def sims(*shape: int) -> torch.Tensor:
        values = torch.rand(*shape, generator=dice)
        values = (values * 8).round() / 8 if coarse else values
        values[torch.rand(*shape, generator=dice) < 0.05] = torch.nan
        values[torch.rand(*shape, generator=dice) < 0.05] = 1.0000002  # a cosine that rounding took above 1
        values[..., :2, :] = torch.nan  # two rows were never measured
        return values

    shape = (*streams.values(), rows, decoder)
    right = torch.rand(*shape, generator=dice) < 0.6
    return Ledger(tuple(streams), {**streams, DECODER: decoder}, {s: sims(rows, n) for s, n in streams.items()}, sims(*shape), right)


@pytest.mark.parametrize("minimum", [1, 2, 4, 9])
@pytest.mark.parametrize("streams", [{}, {"text": 4}, {"image": 3, "text": 4}, {"a": 2, "b": 3, "c": 2}])
@pytest.mark.parametrize("coarse", [True, False])
def test_all_at_once_is_one_after_the_other(minimum, streams, coarse):
    """Every count equal, ETR to the last bit; thresholds unsorted, twice, on ties, beyond the similarities, just below 1 and NaN."""
    book = noise(len(streams), streams=streams, coarse=coarse)
    levels = [0.5, 0.25, NEVER, 0.5, -1.0, 0.62499, 1 - 1e-12, 1.5, 0.875, float("nan")]
    choices = [dict(zip(streams, c, strict=True)) for c in itertools.product(*[levels[:4]] * len(streams))]
    found = replay(book, choices, levels, minimum)
    saved, full = found.etr(), book.marks(book.whole()).bool()
    prices = Prices("macs", {s: tuple(np.linspace(1, 3, n)) for s, n in book.layers.items()}, 2.0, (DECODER,))
    shares, seen = found.share(prices), set()
    for (c, choice), (k, level) in itertools.product(enumerate(choices), enumerate(levels)):
        depths = book.depths({**choice, DECODER: level}, minimum)
        marks = book.marks(depths).bool()
        assert (found.right[c, k], found.kept[c, k]) == (int(marks.sum()), int((marks & full).sum()))
        assert saved[c, k] == book.etr(depths)
        for stream in streams:
            assert found.encoder[stream][c].tolist() == [int((depths[stream] >= d).sum()) for d in range(1, book.layers[stream] + 1)]
        assert found.decoder[c, k].tolist() == [int((depths[DECODER] >= d).sum()) for d in range(1, book.layers[DECODER] + 1)]
        paid = 2.0 * 40 + sum(prices.layers[s][layer] for s in book.layers for d in depths[s].tolist() for layer in range(d))
        assert shares[c, k] == pytest.approx(paid / 40 / (2.0 + sum(sum(p) for p in prices.layers.values())), rel=1e-12)
        seen |= set(depths[DECODER].tolist())
    assert found.settings(0, 1) == {**choices[0], DECODER: 0.25}
    assert 0 in seen and len(seen) > (3 if minimum == 1 else 1), "vacuous: all rows left at one depth"


def test_a_replay_by_hand():
    """One row, three exits: similarities .5 .7 (and the last, which is not asked), right only at the second exit."""
    book = Ledger((), {DECODER: 3}, {}, torch.tensor([[0.5, 0.7, 0.0]]), torch.tensor([[False, True, False]]))
    found = replay(book, [{}], [0.4, 0.5, 0.6, 0.7, NEVER])
    assert found.decoder[0].sum(-1).tolist() == [1, 2, 2, 3, 3]  # above the threshold, strictly
    assert found.right[0].tolist() == [0, 1, 1, 0, 0] and found.full == 0
    assert found.etr()[0].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0, 0])


@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_is_what_the_bar_holds(seed, margin):
    book = noise(seed, rows=60)
    bar = Bar(book.marks(book.whole()), 0.9, margin)
    choices, last = grid(book, 4), thresholds_of(book.decoder, 5, 6)
    found = replay(book, choices, last)
    want = [[bar.held(book.marks(book.depths({**c, DECODER: t}))) for t in last] for c in choices]
    assert _held(bar, found).tolist() == want and 0 < np.sum(want) < np.size(want)
    best = cheapest(book, 0.9, encoder=4, decoder=6, margin=margin)
    reached = [book.etr(book.depths({**c, DECODER: t})) for c, row in zip(choices, want) for t, held in zip(last, row) if held]
    assert best.etr == max(reached) and (best.quality, best.etr) == book.judge(book.depths(best.settings))
