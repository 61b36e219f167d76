"""The state of some rows under arbitrary exits: how far each layer has got in each row, and the states that wait to go on.

Deeper layers have seen fewer tokens, never more, so that the lengths form a stair (`frontier`). A layer is only run where its keys and
values end; tokens that lag behind at it are made good in the same call, by a named policy:

'run late': they run through it from the states in which they left: exact. 'recompute': all tokens since the last that every layer has seen
run again from the embedding: exact. 'propagate': only their keys and values are made, from the state in which they left. 'copy': their keys
and values are those of the last layer that they ran. 'none': there must not be any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import CacheError, KnobError
from .backbone import Backbone
from .store import BLOCK, Span, Store, blocks

Aids = Callable[[int], dict[str, Any]]
Run = Callable[[int, Tensor, Span, Store, dict[str, Any], Tensor | None], Tensor]
EXACT = ("run late", "recompute")  # every token runs through a layer before a later one does
Follow = Callable[[int, Tensor], Sequence[int]]
POLICIES = (*EXACT, "propagate", "copy", "none")


@dataclass
class _Going:
    """Rows that run layers together: of each row the tokens from `starts` to `ends`, and their states, (rows, tokens, width), after `depth`
    layers."""

    rows: list[int]
    starts: list[int]
    ends: list[int]
    span: Span
    states: Tensor
    aids: Aids
    depth: int = 0
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Where the queries may look at a layer with this window."""
        if window not in self.masks:
            self.masks[window] = self.span.mask(self.states.dtype, window)
        return self.masks[window]

    @cached_property
    def last(self) -> tuple[Tensor, Tensor] | None:
        """Indices of each row's last token; None where it is the last of all."""
        counts = [end - start for end, start in zip(self.ends, self.starts)]
        if min(counts) == self.span.tokens:
            return None
        return torch.arange(len(counts), device=self.span.device), torch.tensor(counts, device=self.span.device) - 1

    def newest(self) -> Tensor:
        """(rows, 1, width) state of each row's last token."""
        if self.span.tokens == 1:
            return self.states
        return self.states[:, -1:] if self.last is None else self.states[self.last][:, None]


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
        self._aids: tuple[Any, Aids] | None = None
        self._fills: dict[tuple[tuple[int, int], ...], tuple[Span, Tensor, Aids]] = {}

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
        self.rows, self._aids = len(rows), None

    # -- tokens go on -------------------------------------------------------------------------------------------------------------

    def advance(self, rows: Sequence[int], depth: int, first: int = 0, watch: Follow | None = None, run: Run | None = None) -> None:
        """All tokens of these rows to a depth. first: layers below it have no one to run. watch, run: see `cross`."""
        self.cross(rows, range(first, depth), watch, run)

    def visit(self, layer: int, rows: Sequence[int]) -> Tensor:
        """These rows run one layer, (rows, 1, width) the newest token's state after it."""
        self.cross(rows, (layer,))
        return self.newest(rows)

    def cross(self, rows: Sequence[int], layers: Iterable[int], watch: Follow | None = None, run: Run | None = None) -> None:
        """These rows run some layers, rising; tokens that lag at a layer share its call, and a row without such a token is not in it.

        As long as the same rows bring the same tokens, their states stay at hand. watch: is given, after each layer, the layers run so far
        and the states of the tokens that came last (rows, tokens, width), and gives the rows that go on: for rows that all bring a token to
        every layer, and where several came that none lags. run: what takes the place of the backbone's own `run`.
        """
        run, going = run or self.backbone.run, None
        several = any(len(self.ids[row]) - self.fresh[row] > 1 for row in rows)
        self._fills = {}
        for layer in layers:
            have, store = self.have[layer], self.stores[layer]
            behind = [row for row in rows if have[row] < len(self.ids[row])]
            if not behind:
                continue
            self._make_good(layer, behind)
            going = self._going(going, behind, [have[row] for row in behind])
            mask = going.mask(self.backbone.window(layer)) if self.backbone.masked(layer, going.span) else None
            going.states = run(layer, going.states, going.span, store, going.aids(layer), mask)
            going.depth = layer + 1
            for row, end in zip(behind, going.ends):
                have[row] = end
            if watch is not None:
                rows = watch(layer + 1, going.states if several else going.newest())
                if not rows:
                    break
        if going is not None:
            self._lay_down(going)

    def _going(self, before: _Going | None, rows: list[int], starts: list[int]) -> _Going:
        """What these rows bring to a layer: what they have at hand from the one before, if that is the same tokens of the same rows."""
        if before is not None:
            if before.rows == rows and before.starts == starts:
                return before
            self._lay_down(before)
        ends = [len(self.ids[row]) for row in rows]
        span = Span(self._all(rows), tuple(starts), max(e - s for e, s in zip(ends, starts)), self.backbone.device)
        states = self._take(span)
        return _Going(rows, starts, ends, span, states, self._aids_of(span, states))

    def _lay_down(self, going: _Going) -> None:
        """The states at hand go to where they wait."""
        self._put(going.span, going.states)
        for row, start, end in zip(going.rows, going.starts, going.ends):
            self.depths[row][start:end] = [going.depth] * (end - start)

    def _aids_of(self, span: Span, states: Tensor) -> Aids:
        """Made once for all layers that the same slots come to; rows that bring the same slots share them, whichever rows they are."""
        alike = span.even and self.backbone.source is None  # what an encoder gave is each row's own
        key = (None if alike else span.rows, span.starts[:1] if span.even else span.starts, span.tokens)
        if self._aids is None or self._aids[0] != key:
            self._aids = key, self.backbone.aids(states, span)
        return self._aids[1]

    def _make_good(self, layer: int, rows: Sequence[int]) -> None:
        """Keys and values of the tokens that this layer has not seen and that came before the newest, for the policies that do not run
        them."""
        have = self.have[layer]
        if self.policy in EXACT:
            return
        missing: dict[int, list[int]] = {}  # tokens that are missing -> the rows that miss so many
        for row in rows:
            if have[row] < self.fresh[row]:
                missing.setdefault(self.fresh[row] - have[row], []).append(row)
        for tokens, lagging in missing.items():
            if self.policy == "none":
                row = lagging[0]
                raise CacheError(
                    f"Layer {layer + 1} has not seen tokens {have[row]}..{self.fresh[row] - 1} of row {row}, and nothing is to be made "
                    "good. Let depths never rise along a row, or choose keys_values='run late'."
                )
            if self.policy == "copy":
                self._copy(layer, lagging)
            else:
                self._fill(layer, lagging, tokens)
            for row in lagging:
                have[row] = self.fresh[row]

    def _copy(self, layer: int, rows: Sequence[int]) -> None:
        for row in rows:
            for token in range(self.have[layer][row], self.fresh[row]):
                self.stores[layer].copy(self.stores[self.depths[row][token] - 1], row, [token])

    def _fill(self, layer: int, rows: Sequence[int], tokens: int) -> None:
        """Keys and values of so many tokens of each row. The states in which they left wait where they are: they are taken once for all
        layers that miss the same tokens."""
        key = tuple((row, self.have[layer][row]) for row in rows)
        if key not in self._fills:
            span = Span(self._all(rows), tuple(start for _, start in key), tokens, self.backbone.device)
            states = self._take(span)
            self._fills[key] = span, states, self.backbone.aids(states, span)
        span, states, aids = self._fills[key]
        self.backbone.fill(layer, states, span, self.stores[layer], aids(layer))

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

    def brought(self, rows: Sequence[int]) -> Tensor:
        """(rows, tokens, width) states of the tokens that came last; a row that brought fewer shows anything after them."""
        tokens = max(self.length(row) - self.fresh[row] for row in rows)
        if tokens == 1:
            return self.newest(rows)
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
