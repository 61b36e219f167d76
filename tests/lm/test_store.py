"""Keys and values: what was put is found again, for rows of any length, through growth, copies and rows that leave."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from exitwise.errors import CacheError
from exitwise.lm.store import BLOCK, Span, Store, blocks

CPU = torch.device("cpu")


def brought(span: Span, rows: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (rows, 2, span.tokens, 3)  # two heads of width 3
    return torch.randn(shape, generator=dice), torch.randn(shape, generator=dice)


def test_a_span_says_its_slots() -> None:
    span = Span((2, 0), (5, 3), 2)
    assert (span.end, span.even, span.positions.tolist()) == (7, False, [[5, 6], [3, 4]])
    assert [index.tolist() for index in span.own] == [[[2], [0]], [[5, 6], [3, 4]]]
    assert Span(None, (4, 4), 2).even and Span(None, (4, 4), 2).positions.tolist() == [[4, 5]]
    assert [blocks(n) for n in (1, 64, 65)] == [64, 64, 128]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_a_query_sees_itself_and_what_was_before(window: int | None) -> None:
    span = Span(None, (5, 2), 3)
    seen = span.seen(window)
    assert seen is not None and seen.shape == (2, 1, 3, 8)
    for row, start in enumerate((5, 2)):
        for query in range(3):
            looks = [s for s in range(8) if s <= start + query and (window is None or s > start + query - window)]
            assert seen[row, 0, query].nonzero()[:, 0].tolist() == looks


def test_one_even_token_needs_no_mask_unless_a_window_cuts() -> None:
    assert Span(None, (9, 9), 1).seen() is None and Span(None, (9, 9), 1).seen(10) is None
    cut = Span(None, (9, 9), 1).seen(9)
    assert cut is not None and cut[0, 0, 0].tolist() == [False] + [True] * 9


def test_what_was_written_is_read_whatever_else_happens() -> None:
    """Random spans of some rows, some of them past the room, against a dictionary; rows leave half-way."""
    luck, dice, store = random.Random(0), torch.Generator().manual_seed(0), Store(3)
    held: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    kinds, orders = set(), set()
    for turn in range(60):
        if turn == 30:
            store.keep(torch.tensor([2, 0]))
            held = {([2, 0].index(row), slot): pair for (row, slot), pair in held.items() if row != 1}
        rows = sorted(luck.sample(range(store.rows), luck.randint(1, store.rows)))
        every = len(rows) == store.rows
        starts = tuple(luck.randint(0, 4 * turn) for _ in rows) if luck.random() < 0.6 else (luck.randint(0, 4 * turn),) * len(rows)
        span = Span(None if every else tuple(rows), starts, luck.randint(1, 5), CPU)
        kinds.add((span.even, every))
        keys, values = brought(span, len(rows), dice)
        store.write(span, keys, values)
        for i, row in enumerate(rows):
            for t in range(span.tokens):
                held[row, starts[i] + t] = keys[i, :, t], values[i, :, t]
        got_keys, got_values = store.read(span)
        if luck.random() < 0.5:  # a second time, at which rows that lay apart are laid together
            got_keys, got_values = store.read(span)
        orders.add(tuple(store.order))
        assert got_keys.shape == (len(rows), 2, span.end, 3)
        for i, row in enumerate(rows):
            for slot in range(span.end):
                if (row, slot) in held:
                    assert torch.equal(got_keys[i, :, slot], held[row, slot][0]) and torch.equal(got_values[i, :, slot], held[row, slot][1])
    assert len(kinds) == 4 and len(orders) > 3 and max(slot for _, slot in held) > BLOCK


def test_rows_that_come_twice_are_read_as_they_lie() -> None:
    """Gathered at first, then laid together once; from then on nothing is copied, whatever order the others have."""
    store, dice = Store(6), torch.Generator().manual_seed(0)
    span = Span(None, (0,) * 6, 7, CPU)
    keys, values = brought(span, 6, dice)
    store.write(span, keys, values)
    some, ragged = Span((1, 3, 5), (6, 6, 6), 1, CPU), Span((1, 3, 5), (6, 2, 4), 1, CPU)

    def lie(span: Span) -> bool:
        assert store.keys is not None
        rows = list(span.rows or range(6))
        got_keys, got_values = store.read(span)
        assert torch.equal(got_keys, keys[rows]) and torch.equal(got_values, values[rows])
        return got_keys.untyped_storage().data_ptr() == store.keys.untyped_storage().data_ptr()

    assert lie(Span((2, 3), (6, 6), 1, CPU))  # neighbours need not be moved
    assert [lie(some), lie(some), lie(ragged), lie(Span((3, 5), (6, 6), 1, CPU))] == [False, True, True, True]
    assert store.order == [1, 3, 5, 0, 2, 4]
    assert [lie(Span((0, 5), (6, 6), 1, CPU)), lie(some), lie(Span((0, 5), (6, 6), 1, CPU))] == [False, True, False]  # now and then
    new = Span((1, 3, 5), (7, 5, 2), 1, CPU)
    fresh_keys, fresh_values = brought(new, 3, dice)
    store.write(new, fresh_keys, fresh_values)
    every = Span(None, (7,) * 6, 1, CPU)
    for _ in range(2):  # all rows again: first gathered, then laid back
        assert torch.equal(store.read(every)[0][3, :, 5], fresh_keys[1, :, 0]) and torch.equal(store.read(every)[0][2, :, :7], keys[2])
    assert store.order == [0, 1, 2, 3, 4, 5]
    store.read(some), store.read(some)
    store.keep(torch.tensor([5, 0]))
    assert torch.equal(store.read(Span(None, (7, 7), 1, CPU))[1][0, :, 2], fresh_values[2, :, 0]) and store.order == [0, 1]


def test_room_grows_by_half_in_blocks_and_loses_nothing() -> None:
    store, dice = Store(1), torch.Generator().manual_seed(0)
    sizes, pairs = [], []
    for slot in range(400):
        span = Span(None, (slot,), 1, CPU)
        pairs.append(brought(span, 1, dice))
        store.write(span, *pairs[-1])
        assert store.keys is not None
        sizes.append(store.keys.shape[2])
    assert sorted(set(sizes)) == [64, 128, 192, 320, 512]  # 64 and 128 by the need, then half as much again, rounded up to blocks
    keys, values = store.read(Span(None, (399,), 1, CPU))
    assert torch.equal(keys, torch.cat([k for k, _ in pairs], 2)) and torch.equal(values, torch.cat([v for _, v in pairs], 2))


def test_slots_of_a_row_are_copied_from_another_layer() -> None:
    dice, below, above = torch.Generator().manual_seed(0), Store(2), Store(2)
    span = Span(None, (0, 0), 70, CPU)
    below.write(span, *brought(span, 2, dice))
    below._together((1, 0))  # a row is found wherever it lies
    above.copy(below, 1, [3, 69])
    assert above.keys is not None and above.values is not None and below.keys is not None and below.values is not None
    assert torch.equal(above.keys[1, :, [3, 69]], below.keys[0, :, [3, 69]]) and torch.equal(above.values[1, :, 69], below.values[0, :, 69])
    assert above.keys[0].eq(0).all() and above.keys[1, :, :3].eq(0).all()


def test_another_dtype_is_refused() -> None:
    store, dice = Store(1), torch.Generator().manual_seed(0)
    span = Span(None, (0,), 1, CPU)
    keys, values = brought(span, 1, dice)
    store.write(span, keys, values)
    with pytest.raises(CacheError, match="float16 came to a store of torch.float32"):
        store.write(Span(None, (1,), 1, CPU), keys.half(), values.half())
