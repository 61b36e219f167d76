"""The state of some rows under arbitrary exits: how far each layer has got in each row, and the states that wait to go on.

Deeper layers have seen fewer tokens, never more, so that the lengths form a stair (`frontier`). A layer is only run where its keys and
values end; tokens that lag behind at it are made good in the same call, by a named policy:

'run late': they run through it from the states in which they left: exact. 'recompute': all tokens since the last that every layer has seen
run again from the embedding: exact. 'propagate': only their keys and values are made, from the state in which they left. 'copy': their keys
and values are those of the last layer that they ran. 'none': there must not be any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CacheError, KnobError
from .backbone import Backbone
from .store import BLOCK, Span, Store, blocks

Run = Callable[[int, Tensor, Span, Store, dict[str, Any], Tensor | None], Tensor]
POLICIES = ("run late", "recompute", "propagate", "copy", "none")


class Stair:
    """Rows of tokens on their way through a model. room: tokens for which memory is laid out at once."""

    def __init__(self, backbone: Backbone, rows: int, policy: str = "run late", room: int = BLOCK) -> None:
        if policy not in POLICIES:
            raise KnobError(f"keys_values={policy!r} is not known here. Allowed: {', '.join(POLICIES)}.")
        self.backbone, self.rows, self.policy = backbone, rows, policy
        self.stores = [Store(rows, room) for _ in range(backbone.depth)]
        self.have = [[0] * rows for _ in range(backbone.depth)]
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.depths: list[list[int]] = [[] for _ in range(rows)]
        self.fresh = [0] * rows  # of each row, the first of the tokens that came last: those go on together
        self.states: Tensor | None = None
        self.base = 0
        self._span: tuple[Any, Span, Callable[[int], dict[str, Any]], dict[int | None, Tensor | None]] | None = None

    def length(self, row: int) -> int:
        """Tokens of a row."""
        return len(self.ids[row])

    def frontier(self, row: int) -> list[int]:
        """Tokens of a row that each layer has seen; never more at a deeper one, but for a layer that a route left out."""
        return [have[row] for have in self.have]

    # -- tokens come and go -------------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """New tokens at the end of these rows, as states before the first layer."""
        if self.policy == "recompute":
            for row in rows:
                self._again(row)
        longest = max(len(t) for t in tokens)
        starts = [self.length(row) for row in rows]
        for row, new in zip(rows, tokens, strict=True):
            self.fresh[row] = self.length(row)
            self.ids[row].extend(new)
            self.depths[row].extend([0] * len(new))
        self._embed(rows, starts, [[*new, *[new[-1]] * (longest - len(new))] for new in tokens])

    def _embed(self, rows: Sequence[int], starts: Sequence[int], ids: list[list[int]]) -> None:
        span = Span(self._all(rows), tuple(starts), len(ids[0]), self.backbone.device)
        positions = span.positions.expand(len(rows), -1)
        states = self.backbone.embed(torch.tensor(ids, device=self.backbone.device), positions)
        self._put(span, states)

    def _again(self, row: int) -> None:
        """Forget what only some layers have seen of a row."""
        whole = min(have[row] for have in self.have)
        if whole == self.length(row):
            return
        for have in self.have:
            have[row] = whole
        self._embed([row], [whole], [self.ids[row][whole:]])
        self.depths[row][whole:] = [0] * (self.length(row) - whole)

    def crop(self, row: int, length: int) -> None:
        """Take back all tokens of a row after the first `length`."""
        del self.ids[row][length:], self.depths[row][length:]
        self.fresh[row] = min(self.fresh[row], length)
        for have in self.have:
            have[row] = min(have[row], length)
        if self.states is not None and length < self.base:  # states that were let go: what comes next needs their places
            room = self.states.new_zeros((self.rows, self.base - length, self.states.shape[-1]))
            self.states, self.base = torch.cat([room, self.states], 1), length

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows stay, in this order, and are numbered anew."""
        index = torch.tensor(list(rows), device=self.backbone.device)
        for store in self.stores:
            store.keep(index)
        if self.backbone.source is not None:
            self.backbone.source.keep(index)
        self.have = [[have[row] for row in rows] for have in self.have]
        self.ids, self.depths = [self.ids[row] for row in rows], [self.depths[row] for row in rows]
        self.fresh = [self.fresh[row] for row in rows]
        self.states = None if self.states is None else self.states.index_select(0, index)
        self.rows, self._span = len(rows), None

    # -- tokens go on -------------------------------------------------------------------------------------------------------------

    def advance(self, rows: Sequence[int], depth: int, first: int = 0) -> None:
        """All tokens of these rows to a depth; tokens that lag at the same layer share its call. first: layers below it have no one to
        run."""
        layer = first
        while layer < depth:
            behind = [row for row in rows if self.have[layer][row] < len(self.ids[row])]
            last = self._alike(layer, depth, behind)
            if last > layer + 1:
                self._sweep(layer, last, behind)
            elif behind:
                self.visit(layer, behind)
            layer = last

    def _alike(self, layer: int, depth: int, behind: Sequence[int]) -> int:
        """One past the last layer to which all rows bring the very tokens that they bring to this one, and none that lags."""
        have, last = self.have[layer], layer + 1
        if len(behind) < self.rows or (self.policy != "run late" and any(h < len(i) - 1 for h, i in zip(have, self.ids))):
            return last
        while last < depth and self.have[last] == have:
            last += 1
        return last

    def _sweep(self, layer: int, last: int, rows: Sequence[int]) -> None:
        """All rows run these layers, to which they bring the same tokens: the states stay at hand in between."""
        starts, ends = list(self.have[layer]), [len(ids) for ids in self.ids]
        tokens = max(end - start for end, start in zip(ends, starts))
        span, _, _ = self._spanned(layer, rows, starts, tokens)
        states = self._take(span)
        for at in range(layer, last):
            span, aids, seen = self._spanned(at, rows, starts, tokens, known=True)
            states = self.backbone.run(at, states, span, self.stores[at], aids, seen)
            self.have[at] = list(ends)
        self._put(span, states)
        for row, start, end in zip(rows, starts, ends):
            self.depths[row][start:end] = [last] * (end - start)

    def visit(self, layer: int, rows: Sequence[int], run: Run | None = None) -> Tensor:
        """These rows run one layer, (rows, 1, width) the newest token's state after it. All have a token that the layer has not seen.

        run: what takes the place of the backbone's own `run`.
        """
        have = self.have[layer]
        if self.policy not in ("run late", "recompute"):
            self._make_good(layer, rows)
        starts = [have[row] for row in rows]
        ends = [len(self.ids[row]) for row in rows]
        tokens = max(e - s for e, s in zip(ends, starts))
        span, aids, seen = self._spanned(layer, rows, starts, tokens)
        after = (run or self.backbone.run)(layer, self._take(span), span, self.stores[layer], aids, seen)
        self._put(span, after)
        for row, start, end in zip(rows, starts, ends):
            have[row] = end
            self.depths[row][start:end] = [layer + 1] * (end - start)
        if all(e - s == tokens for e, s in zip(ends, starts)):
            return after[:, -1:]
        last = torch.tensor([e - s - 1 for e, s in zip(ends, starts)], device=after.device)
        return after[torch.arange(len(rows), device=after.device), last][:, None]

    def _make_good(self, layer: int, rows: Sequence[int]) -> None:
        """Keys and values of the tokens that this layer has not seen and that came before the newest, for the policies that do not run
        them."""
        have = self.have[layer]
        for row in rows:
            start, end = have[row], self.fresh[row]
            if start >= end:
                continue
            if self.policy == "none":
                raise CacheError(
                    f"Layer {layer + 1} has not seen tokens {start}..{end - 1} of row {row}, and nothing is to be made good. "
                    "Let depths never rise along a row, or choose keys_values='run late'."
                )
            if self.policy == "copy":
                for token in range(start, end):
                    self.stores[layer].copy(self.stores[self.depths[row][token] - 1], row, [token])
            else:
                span = Span(self._all([row]), (start,), end - start, self.backbone.device)
                states = self._take(span)
                self.backbone.fill(layer, states, span, self.stores[layer], self.backbone.aids(states, span)(layer))
            have[row] = end

    def _spanned(
        self, layer: int, rows: Sequence[int], starts: list[int], tokens: int, known: bool = False
    ) -> tuple[Span, dict[str, Any], Tensor | None]:
        """The span and what goes with it, made once for the layers that it crosses. known: it is the same as in the last call."""
        key = None if known else (tuple(rows), tuple(starts), tokens)
        if self._span is None or (not known and self._span[0] != key):
            span = Span(self._all(rows), tuple(starts), tokens, self.backbone.device)
            self._span = key, span, self.backbone.aids(self._take(span), span), {}
        _, span, aids, masks = self._span
        window = self.backbone.window(layer)
        if window not in masks:
            masks[window] = span.seen(window)
        return span, aids(layer), masks[window]

    # -- states -------------------------------------------------------------------------------------------------------------------

    def state(self, row: int, start: int, end: int) -> Tensor:
        """(1, tokens, width) states of these tokens of a row, each at its depth; only of tokens that not every layer has left behind."""
        assert self.states is not None
        return self.states[row : row + 1, start - self.base : end - self.base]

    def newest(self, rows: Sequence[int]) -> Tensor:
        """(rows, 1, width) state of each row's last token."""
        assert self.states is not None
        if len(rows) == 1:
            return self.state(rows[0], self.length(rows[0]) - 1, self.length(rows[0]))
        index = torch.tensor(list(rows), device=self.states.device)
        last = torch.tensor([self.length(row) - 1 - self.base for row in rows], device=self.states.device)
        return self.states[index, last][:, None]

    def brought(self, rows: Sequence[int], tokens: int) -> Tensor:
        """(rows, tokens, width) states from the first of the tokens that came last; a row that brought fewer shows anything after them."""
        assert self.states is not None
        device = self.states.device
        index, starts = (torch.tensor(x, device=device)[:, None] for x in (list(rows), [self.fresh[row] for row in rows]))
        slots = starts - self.base + torch.arange(tokens, device=device)
        return self.states[index, slots.clamp(max=self.states.shape[1] - 1)]

    def _all(self, rows: Sequence[int]) -> tuple[int, ...] | None:
        return None if len(rows) == self.rows and list(rows) == list(range(self.rows)) else tuple(rows)

    def _take(self, span: Span) -> Tensor:
        assert self.states is not None
        if span.even:
            start = span.starts[0] - self.base
            states = self.states[:, start : start + span.tokens]
            return states if span.index is None else states.index_select(0, span.index)
        self._room(span.end, self.states)  # a short row that lags reaches, beyond its end, past the longest one's
        rows, slots = span.own
        return self.states[rows, slots - self.base]

    def _put(self, span: Span, states: Tensor) -> None:
        self._room(span.end, states)
        assert self.states is not None
        if span.even and span.rows is None:
            start = span.starts[0] - self.base
            self.states[:, start : start + span.tokens] = states
            return
        rows, slots = span.own
        self.states[rows, slots - self.base] = states

    def _room(self, end: int, like: Tensor) -> None:
        """Room for states up to slot `end`; those that every layer has seen are let go first."""
        if self.states is None:
            self.states = like.new_zeros((self.rows, blocks(end - self.base), like.shape[-1]))
        elif end - self.base > self.states.shape[1]:
            done = min(self.have[-1])
            kept = self.states[:, max(0, done - self.base) :]
            self.base = max(self.base, done)
            fresh = like.new_zeros((self.rows, blocks(2 * (end - self.base)), like.shape[-1]))
            fresh[:, : kept.shape[1]] = kept[:, : fresh.shape[1]]
            self.states = fresh
