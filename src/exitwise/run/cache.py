"""Keys and values of a decoder whose tokens leave at different depths: what each layer holds, per row, and how the rest is made good.

A transformers cache is adopted in place: its layer objects are exchanged for ours, so `generate`, beam search and the user's own code go on
holding the same cache. Each layer keeps, per row, how many tokens it has really seen (`length`); the frontier keeps the state in which each
token left, so that what is missing is made only when a deeper layer is next visited (and never, if it never is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from ..errors import CacheError
from .places import Places, grown

POLICIES = ("propagate", "run late", "recompute", "holes")


class Filled(Exception):  # noqa: N818 - a signal, not an error: it ends a layer once its keys and values are stored
    """The layer has stored the keys and values that were wanted; the rest of it is not needed."""


class Frontier:
    """What the layers of one decoder's cache share. tokens: columns seen; base: where the block of tokens begins that the model is
    asked for."""

    def __init__(self, windows: Sequence[int | None], rows: int, policy: str) -> None:
        """windows: of each layer, how far it looks back; None for all the way."""
        layers = len(windows)
        self.policy, self.tokens, self.base = policy, 0, 0
        self.layers = [JaggedLayer(self, rows) if window is None else SlidingLayer(self, rows, window) for window in windows]
        self.cross = [CrossLayer(rows) for _ in range(layers)]
        self.kept: Tensor | None = None
        self.places = Places(rows)
        self.given: dict[str, Tensor] = {}
        self.done = [False] * rows
        self.step = 0

    @property
    def late(self) -> bool:
        """Whether missing tokens are run again, so that the model is asked for more than the new ones."""
        return self.policy in ("run late", "recompute")

    @property
    def full_prefix(self) -> int:
        """Tokens that every layer has seen in every row that goes on."""
        live = [n for n, done in zip(self.layers[-1].length, self.done, strict=True) if not done]
        return min(live, default=self.tokens)

    def keep(self, rows: Tensor | None, start: int, states: Tensor) -> None:
        """Note the states (rows, tokens, width) of the tokens from `start` on."""
        like = states if self.kept is None else self.kept
        if self.kept is None:
            like = states.new_empty((len(self.done), 0, states.shape[-1]))
        self.kept = grown(self.kept, like, 1, start + states.shape[1])
        if rows is None:
            self.kept[:, start : start + states.shape[1]] = states
        else:
            self.kept[rows, start : start + states.shape[1]] = states

    def states(self, rows: Tensor | None, start: int, end: int) -> Tensor:
        """The latest states of tokens start..end of these rows."""
        assert self.kept is not None
        part = self.kept[:, start:end]
        return part if rows is None else part.index_select(0, rows)

    def forget(self) -> None:
        """Go back, in every row, to the tokens that every layer has seen ('recompute')."""
        shared = list(self.layers[-1].length)
        for layer in self.layers:
            layer.length = [min(a, b) for a, b in zip(layer.length, shared, strict=True)]

    def select(self, rows: Tensor) -> None:
        """Reorder (beam search) or pick rows: everything that is kept per row follows."""
        order = rows.tolist()
        self.done = [self.done[i] for i in order]
        self.given = {k: v.index_select(0, rows.to(v.device)) for k, v in self.given.items()}
        self.places.select(rows)
        if self.kept is not None:
            self.kept = self.kept.index_select(0, rows.to(self.kept.device))


class JaggedLayer(CacheLayerMixin):
    """Self-attention keys and values of one layer, (rows, heads, tokens, width), with a length per row.

    Under 'holes' the tokens that a row skipped here are not among them: those that follow close up.
    """

    is_sliding = False
    is_croppable = False
    is_compileable = False

    def __init__(self, frontier: Frontier, rows: int) -> None:
        super().__init__()
        nothing = torch.zeros(rows, 0, 0, 0)  # in a shape that a reader of a finished cache can index
        self.keys: Any = nothing
        self.values: Any = nothing
        self.frontier = frontier
        self.length = [0] * rows
        self.rows: Tensor | None = None
        self.start: int | None = None
        self.filling = False

    def visit(self, rows: Tensor | None, start: int, filling: bool = False) -> None:
        """The next update is for these rows, whose tokens go on from `start`."""
        self.rows, self.start, self.filling = rows, start, filling

    def leave(self) -> None:
        """The layer's call is over."""
        self.start = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.start is None:
            raise CacheError(
                "A cache that carries exits was used outside of them. Generate inside one `attached()` block, or start a new cache."
            )
        self.lazy_initialization(key_states, value_states)
        end = self.start + key_states.shape[2]
        whole = (len(self.length), *key_states.shape[1:])
        stores: list[Tensor] = []
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            store = grown(store, new.new_empty((1,)).expand(whole), 2, end)
            if self.rows is None:
                store[:, :, self.start : end] = new
            else:
                store[self.rows, :, self.start : end] = new
            stores.append(store)
        self.keys, self.values = stores
        if self.filling:
            raise Filled
        views = [store[:, :, self.first : end] for store in stores]
        return (views[0], views[1]) if self.rows is None else (views[0].index_select(0, self.rows), views[1].index_select(0, self.rows))

    @property
    def first(self) -> int:
        """The first token that the layer is shown."""
        return 0

    def get_seq_length(self) -> int:
        return self.frontier.base if self.start is None else self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        raise CacheError("A cache that carries exits cannot be reset. Start a new one.")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.length = [self.length[i] for i in indices.tolist()]
        self.keys = self.keys.index_select(0, indices.to(self.keys.device))
        self.values = self.values.index_select(0, indices.to(self.values.device))
        if self is self.frontier.layers[0]:
            self.frontier.select(indices)


class SlidingLayer(JaggedLayer):
    """The same for a layer that looks back over so many tokens only (itself counted), as its model's masks are made for.

    It is shown what a plain sliding layer would show it, so that full depth is the model bit for bit; but all tokens are kept, because
    rows come to it at unlike times.
    """

    is_sliding = True

    def __init__(self, frontier: Frontier, rows: int, window: int) -> None:
        super().__init__(frontier, rows)
        self.window = window

    @property
    def first(self) -> int:
        return max(self.frontier.base - self.window + 1, 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.frontier.base - self.first + query_length, self.first


class CrossLayer(CacheLayerMixin):
    """Cross-attention keys and values of one layer: filled per row at the row's first visit, never for a row that never comes."""

    is_sliding = False
    is_croppable = False
    is_compileable = False

    def __init__(self, rows: int) -> None:
        self.have = [False] * rows
        self.store: tuple[Tensor, Tensor] | None = None
        self.rows: Tensor | None = None
        self.is_initialized = True
        self._view: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None

    def visit(self, rows: Tensor | None) -> bool:
        """Select the rows of the coming call; true if their keys and values are there."""
        self.rows = rows
        return all(self.have) if rows is None else all(self.have[i] for i in rows.tolist())

    def leave(self) -> None:
        """The layer's call is over: readers of the cache see all rows again."""
        self.rows = None

    def _seen(self) -> tuple[Tensor, Tensor]:
        if self.store is None:
            nothing = torch.zeros(len(self.have), 0, 0, 0)
            return nothing, nothing
        if self.rows is None:
            return self.store
        key = tuple(self.rows.tolist())
        if self._view is None or self._view[0] != key:
            self._view = key, (self.store[0].index_select(0, self.rows), self.store[1].index_select(0, self.rows))
        return self._view[1]

    @property
    def keys(self) -> Tensor:
        return self._seen()[0]

    @property
    def values(self) -> Tensor:
        return self._seen()[1]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._view = None
        if self.rows is None:
            self.store, self.have = (key_states, value_states), [True] * len(self.have)
            return key_states, value_states
        if self.store is None:
            whole = (len(self.have), *key_states.shape[1:])
            self.store = key_states.new_zeros(whole), value_states.new_zeros((len(self.have), *value_states.shape[1:]))
        for store, new in zip(self.store, (key_states, value_states), strict=True):
            store[self.rows] = new
        for row in self.rows.tolist():
            self.have[row] = True
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.store is None else self.store[0].shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        raise CacheError("A cache that carries exits cannot be reset. Start a new one.")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.have, self._view = [self.have[i] for i in indices.tolist()], None
        if self.store is not None:
            keys, values = self.store
            self.store = keys.index_select(0, indices.to(keys.device)), values.index_select(0, indices.to(values.device))


def frontier_of(cache: Any) -> Frontier | None:
    """The frontier of a cache that was adopted, else None."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    layers = getattr(own, "layers", None)
    return layers[0].frontier if layers and isinstance(layers[0], JaggedLayer) else None


def adopt(cache: Cache, layers: int, rows: int, policy: str) -> Frontier:
    """Exchange the layers of an empty dynamic cache for ours, in place. Raises CacheError for caches that cannot be jagged or hold
    tokens."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    kinds = {type(layer) for layer in own.layers}
    if not isinstance(own, DynamicCache) or own.offloading or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise CacheError(
            f"A {type(own).__name__} of {', '.join(sorted(k.__name__ for k in kinds)) or 'no layers'} "
            "cannot hold layers of different lengths. "
            "Use a DynamicCache of plain or sliding layers (do not pass cache_implementation)."
        )
    if own.get_seq_length() > 0:
        raise CacheError(f"The cache holds {own.get_seq_length()} tokens that were computed without exits. Start with an empty cache.")
    windows = [getattr(layer, "sliding_window", None) for layer in own.layers]
    windows += [None] * (layers - len(windows))  # a cache that was made without the model's configuration
    if policy == "holes" and any(windows):
        raise CacheError(f"The {type(own).__name__} has sliding windows, which mean nothing where tokens are left out. Use another policy.")
    frontier = Frontier(windows[:layers], rows, policy)
    own.layers[:] = frontier.layers
    if isinstance(cache, EncoderDecoderCache):
        cache.cross_attention_cache.layers[:] = frontier.cross
        cache.is_updated = dict.fromkeys(range(layers), False)
    return frontier


def lengths(cache: Any) -> list[list[int]]:
    """Tokens held by each layer in each row, for checks and reports."""
    frontier = frontier_of(cache)
    return [] if frontier is None else [list(layer.length) for layer in frontier.layers]


def rows_tensor(rows: Sequence[int], of: int, device: torch.device) -> Tensor | None:
    """Row numbers as an index; None stands for all `of` rows in their order."""
    return None if len(rows) == of else torch.tensor(list(rows), device=device)
