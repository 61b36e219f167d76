"""Keys and values of one layer, for rows of unlike length: token t of a row lies in slot t, memory grows in blocks, and rows that walk
together lie together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..errors import CacheError

BLOCK = 64


def blocks(tokens: int) -> int:
    """The least multiple of the block that holds so many tokens."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(frozen=True)
class Span:
    """The tokens that some rows bring to a layer: row i brings `tokens`, from its slot `starts[i]` on.

    rows: numbers of the rows, None for all in order. A row may have fewer tokens than the others: what is computed beyond its end is
    never seen, since each query looks at its own slot and those before, and the slots are written again before they count.
    """

    rows: tuple[int, ...] | None
    starts: tuple[int, ...]
    tokens: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def end(self) -> int:
        """One past the last slot that is written."""
        return max(self.starts) + self.tokens

    @cached_property
    def even(self) -> bool:
        """Whether all rows bring the same slots."""
        return len(set(self.starts)) == 1

    @cached_property
    def index(self) -> Tensor | None:
        """The rows as an index."""
        return None if self.rows is None else torch.tensor(self.rows, device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """(rows, tokens) slot of each token, which is its position too; one row for all where they are even."""
        starts = torch.tensor(self.starts[:1] if self.even else self.starts, device=self.device)[:, None]
        return starts if self.tokens == 1 else starts + torch.arange(self.tokens, device=self.device)

    @cached_property
    def first(self) -> Tensor:
        """(rows,) slot of each row's first token."""
        return torch.tensor(self.starts)

    @cached_property
    def slots(self) -> Tensor:
        """(rows, tokens) slots that are written."""
        return self.positions.expand(len(self.starts), -1)

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Indices (rows, 1) and (rows, tokens) of the slots that are written, for rows that are not even or not all."""
        rows = torch.arange(len(self.starts), device=self.device) if self.index is None else self.index
        return rows[:, None], self.slots

    def seen(self, window: int | None = None) -> Tensor | None:
        """(rows, 1, tokens, slots) true where a query may look; None where it may look at all slots. window: tokens back, its own
        included."""
        if self.tokens == 1 and self.even and (window is None or self.end <= window):
            return None
        slots, positions = torch.arange(self.end, device=self.device), self.positions[:, :, None]
        looks = slots <= positions
        if window is not None:
            looks &= slots > positions - window
        return looks[:, None].expand(len(self.starts), 1, self.tokens, self.end)

    def mask(self, dtype: torch.dtype, window: int | None = None) -> Tensor | None:
        """The same as what is added to scores, so that it is made once for all layers: 0 where a query may look, else the least number."""
        seen = self.seen(window)
        return None if seen is None else torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


class Store:
    """Keys and values of one layer, (rows, heads, slots, width of a head) each, made at the first write.

    A row lies at a place of its own. Rows whose places follow each other are read as they lie; others are gathered, which copies all that
    they hold. Rows that come together twice in turn are therefore laid together, once, and found so from then on.
    """

    def __init__(self, rows: int, room: int = BLOCK) -> None:
        self.rows, self.room = rows, blocks(room)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.order = list(range(rows))  # the row that lies at each place
        self.filled = 0  # one past the last slot that any row has written
        self._last: tuple[int, ...] | None = None  # the rows that were read last
        self._found: tuple[tuple[int, ...] | None, slice | Tensor] | None = None
        self._places: tuple[slice | Tensor, Tensor] | None = None  # what was found, and as an index

    def write(self, span: Span, keys: Tensor, values: Tensor) -> None:
        """Put (rows of the span, heads, tokens, width) where the span says. Raises CacheError for another dtype than was put before."""
        self.keys, self.values = self._fit(self.keys, span, keys), self._fit(self.values, span, values)
        self.filled, where = max(self.filled, span.end), self._where(span)
        if span.even and isinstance(where, slice):
            start = span.starts[0]
            self.keys[where, :, start : start + span.tokens] = keys
            self.values[where, :, start : start + span.tokens] = values
            return
        places = torch.arange(where.start, where.stop, device=span.device) if isinstance(where, slice) else where
        self.keys[places[:, None], :, span.slots] = keys.transpose(1, 2)
        self.values[places[:, None], :, span.slots] = values.transpose(1, 2)

    def read(self, span: Span) -> tuple[Tensor, Tensor]:
        """Keys and values of the span's rows, up to its last slot. Raises nothing: slots that were not written yet hold what they hold."""
        assert self.keys is not None and self.values is not None
        rows = self._named(span)
        again, self._last = self._last == rows, rows
        if again and not isinstance(self._where(span), slice):
            self._together(rows)
        where = self._where(span)
        if isinstance(where, slice):
            return self.keys[where, :, : span.end], self.values[where, :, : span.end]
        return self.keys[:, :, : span.end].index_select(0, where), self.values[:, :, : span.end].index_select(0, where)

    def lie_open(self, span: Span, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, values, place of each row of the span) as they lie, with room for what the span brings: (rows, tokens, heads, width) each,
        to be written by the caller."""
        held = self.keys
        if held is None or self.values is None or span.end > held.shape[2] or held.dtype != keys.dtype:
            self.keys = self._fit(held, span, keys.transpose(1, 2))
            self.values = self._fit(self.values, span, values.transpose(1, 2))
        assert self.keys is not None and self.values is not None
        self.filled, where = max(self.filled, span.end), self._where(span)
        if self._places is None or self._places[0] is not where:
            self._places = where, where if isinstance(where, Tensor) else torch.arange(where.start, where.stop)
        return self.keys, self.values, self._places[1]

    def copy(self, other: Store, row: int, slots: list[int]) -> None:
        """Take these slots of a row from another layer of the same shape."""
        assert other.keys is not None and other.values is not None
        place = torch.tensor(slots, device=other.keys.device)
        if self.keys is None or self.values is None:
            self.keys, self.values = torch.zeros_like(other.keys), torch.zeros_like(other.values)
        self.keys, self.values = _roomy(self.keys, other.keys.shape[2]), _roomy(self.values, other.values.shape[2])
        self.filled = max(self.filled, max(slots) + 1)
        own, its = self.order.index(row), other.order.index(row)
        self.keys[own, :, place], self.values[own, :, place] = other.keys[its, :, place], other.values[its, :, place]

    def keep(self, rows: Tensor) -> None:
        """Only these rows, in this order."""
        if self.keys is not None and self.values is not None:
            places = torch.tensor([self.order.index(row) for row in rows.tolist()], device=self.keys.device)
            self.keys, self.values = self.keys.index_select(0, places), self.values.index_select(0, places)
        self.rows, self.order = len(rows), list(range(len(rows)))
        self._last = self._found = None

    def _named(self, span: Span) -> tuple[int, ...]:
        return tuple(range(self.rows)) if span.rows is None else span.rows

    def _where(self, span: Span) -> slice | Tensor:
        """The places of the span's rows: a slice where they follow each other, else an index."""
        if self._found is None or self._found[0] != span.rows:
            places = [self.order.index(row) for row in self._named(span)]
            first, count = places[0], len(places)
            lined = places == list(range(first, first + count))
            self._found = span.rows, slice(first, first + count) if lined else torch.tensor(places, device=span.device)
        return self._found[1]

    def _together(self, rows: tuple[int, ...]) -> None:
        """These rows lie at the first places, in this order, the others behind them."""
        assert self.keys is not None and self.values is not None
        order = [*rows, *(row for row in self.order if row not in rows)]
        moved = [place for place, row in enumerate(order) if self.order[place] != row]
        to = torch.tensor(moved, device=self.keys.device)
        old = torch.tensor([self.order.index(order[place]) for place in moved], device=self.keys.device)
        for held in (self.keys, self.values):
            part = held[:, :, : self.filled]
            part.index_copy_(0, to, part.index_select(0, old))
        self.order, self._found = order, None

    def _fit(self, held: Tensor | None, span: Span, like: Tensor) -> Tensor:
        if held is None:
            self.room = max(self.room, blocks(span.end))
            return like.new_zeros((self.rows, like.shape[1], self.room, like.shape[3]))
        if held.dtype != like.dtype:
            raise CacheError(f"Keys and values of {like.dtype} came to a store of {held.dtype}. Keep a model in one dtype while it runs.")
        return _roomy(held, span.end)


def _roomy(held: Tensor, slots: int) -> Tensor:
    """The same with room for so many slots; by half as much again, so that long runs copy seldom."""
    if slots <= held.shape[2]:
        return held
    more = blocks(max(slots, held.shape[2] * 3 // 2)) - held.shape[2]
    return torch.cat([held, held.new_zeros((*held.shape[:2], more, held.shape[3]))], 2)
