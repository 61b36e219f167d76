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
    kinds = set()
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
        assert got_keys.shape == (len(rows), 2, span.end, 3)
        for i, row in enumerate(rows):
            for slot in range(span.end):
                if (row, slot) in held:
                    assert torch.equal(got_keys[i, :, slot], held[row, slot][0]) and torch.equal(got_values[i, :, slot], held[row, slot][1])
    assert len(kinds) == 4 and max(slot for _, slot in held) > BLOCK


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
    above.copy(below, 1, [3, 69])
    assert above.keys is not None and above.values is not None and below.keys is not None and below.values is not None
    assert torch.equal(above.keys[1, :, [3, 69]], below.keys[1, :, [3, 69]]) and torch.equal(above.values[1, :, 69], below.values[1, :, 69])
    assert above.keys[0].eq(0).all() and above.keys[1, :, :3].eq(0).all()


def test_another_dtype_is_refused() -> None:
    store, dice = Store(1), torch.Generator().manual_seed(0)
    span = Span(None, (0,), 1, CPU)
    keys, values = brought(span, 1, dice)
    store.write(span, keys, values)
    with pytest.raises(CacheError, match="float16 came to a store of torch.float32"):
        store.write(Span(None, (1,), 1, CPU), keys.half(), values.half())
