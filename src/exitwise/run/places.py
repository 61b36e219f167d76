"""What a model tells its layers about the places of tokens (rotary tables, position ids), kept for tokens that may come late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

BLOCK = 32


def grown(store: Tensor | None, like: Tensor, dim: int, end: int) -> Tensor:
    """`store` with room for `end` places along `dim`, grown in blocks."""
    if store is not None and store.shape[dim] >= end:
        return store
    shape = list(like.shape)
    shape[dim] = -(-end // BLOCK) * BLOCK
    larger = like.new_zeros(shape)
    if store is not None and store.shape[dim]:
        larger.narrow(dim, 0, store.shape[dim]).copy_(store)
    return larger


class Places:
    """Arguments `position_*` of a decoder's layers, (rows or 1, tokens, ...) or tuples of such, for all tokens so far.

    A model makes them for its new tokens only; a layer that is given an older token's state later needs them as they were then. Layers
    that are given the same tables (all of a Llama; all of one kind of attention of a Gemma 3) share one store.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.shares: dict[int, int] = {}
        self.stores: dict[int, dict[str, list[Tensor]]] = {}
        self.told: dict[int, dict[str, Any]] = {}

    def note(self, index: int, call: Mapping[str, Any], start: int, new: int) -> None:
        """What layer `index` is told about its `new` tokens, the first of which is number `start`."""
        told = {name: value for name, value in call.items() if _by_place(name, value, new)}
        if index == 0:
            self.told = {}
        if index not in self.shares:
            same = (other for other, said in self.told.items() if said.keys() == told.keys() and all(said[n] is told[n] for n in told))
            self.shares[index] = next(same, index)
        if self.shares[index] != index:
            return
        self.told[index] = told
        kept = self.stores.setdefault(index, {})
        for name, value in told.items():
            parts = [part.expand(self.rows, *part.shape[1:]) for part in (value if isinstance(value, tuple) else (value,))]
            stores: list[Tensor | None] = list(kept.get(name, [None] * len(parts)))
            kept[name] = [grown(store, part, 1, start + new) for store, part in zip(stores, parts, strict=True)]
            for store, part in zip(kept[name], parts, strict=True):
                store[:, start : start + new] = part

    def of(self, index: int, call: Mapping[str, Any], rows: Tensor | None, start: int, end: int) -> dict[str, Any]:
        """The arguments that tell layer `index` the places of tokens start..end of these rows."""
        out: dict[str, Any] = {}
        for name, stores in self.stores.get(self.shares.get(index, index), {}).items():
            parts = tuple((store if rows is None else store.index_select(0, rows))[:, start:end] for store in stores)
            out[name] = parts if isinstance(call.get(name), tuple) else parts[0]
        return out

    def select(self, rows: Tensor) -> None:
        """Reorder or pick rows."""
        self.rows = len(rows)
        for kept in self.stores.values():
            for name, stores in kept.items():
                kept[name] = [store.index_select(0, rows.to(store.device)) for store in stores]


def _by_place(name: str, value: Any, new: int) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return name.startswith("position_") and all(isinstance(p, Tensor) and p.dim() in (2, 3) and p.shape[1] == new for p in parts)
