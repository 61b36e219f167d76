"""What an encoder gave, as the layers of its decoder see it: keys and values made at a row's first visit of a layer, never before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncoderDecoderCache

from ..run.cache import CrossLayer, rows_tensor
from .store import Span


class Source:
    """The encoder's output for the rows that still run. given: what the encoder returned; mask: (rows, tokens), 1 where a token may be
    read, or None; if it has fewer tokens than the states, those that come first (an image's) are all real. layers: of the decoder."""

    def __init__(self, given: Any, mask: Tensor | None, layers: int) -> None:
        self.given, self.states = given, given[0]
        self.mask = None if mask is None or bool(mask.all()) else F.pad(mask, (self.states.shape[1] - mask.shape[1], 0), value=1)
        self.crossed = [CrossLayer(len(self.states)) for _ in range(layers)]

    def missing(self, layer: int, span: Span) -> list[int]:
        """Those of the span's rows that have no keys and values at this layer yet."""
        have = self.crossed[layer].have
        return [row for row in (range(len(have)) if span.rows is None else span.rows) if not have[row]]

    def of(self, rows: list[int]) -> Tensor:
        """(rows, tokens, width) the encoder's states of these rows."""
        index = rows_tensor(rows, len(self.states), self.states.device)
        return self.states if index is None else self.states.index_select(0, index)

    def put(self, layer: int, rows: list[int], pair: tuple[Tensor, Tensor]) -> None:
        """Keep the keys and values of these rows."""
        own = self.crossed[layer]
        own.visit(rows_tensor(rows, len(own.have), self.states.device))
        own.update(*pair)

    def visit(self, layer: int, span: Span) -> CrossLayer:
        """The layer's keys and values, of the span's rows."""
        self.crossed[layer].visit(span.index)
        return self.crossed[layer]

    def bias(self, rows: Tensor | None) -> Tensor | None:
        """(rows, 1, 1, tokens) what is added to scores: the least number where a token may not be read; None where all may be."""
        if self.mask is None:
            return None
        mask = self.mask if rows is None else self.mask.index_select(0, rows)
        bias = torch.zeros(mask.shape, dtype=self.states.dtype, device=mask.device)
        return bias.masked_fill(mask == 0, torch.finfo(self.states.dtype).min)[:, None, None]

    def aids(self, rows: Tensor | None) -> dict[str, Any]:
        """What a layer of `transformers` takes: states are there for their shape alone, since keys and values are made."""
        return {"encoder_hidden_states": self.states, "encoder_attention_mask": self.bias(rows)}

    def keep(self, rows: Tensor) -> None:
        """Only these rows, in this order."""
        for layer in self.crossed:
            layer.batch_select_indices(rows)
        self.states = self.states.index_select(0, rows)
        self.mask = None if self.mask is None else self.mask.index_select(0, rows)


class Both(EncoderDecoderCache):
    """What a layer with two attentions takes for its cache while it is run: the first has a cache of ours, the second finds all it
    needs."""

    def __init__(self, own: Any, layer: int, cross: CrossLayer) -> None:
        self.self_attention_cache, self.is_updated = own, {layer: True}  # nothing of the class's own is used
        self.cross_attention_cache = SimpleNamespace(layers={layer: cross})
