"""The decoder of OFA: causal, position biases sliced from tables that are made once for a whole generation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from exitwise.errors import InputError

from .base import OFAPreTrainedModel
from .configuration import OFAConfig
from .layers import OFADecoderLayer
from .positions import PositionScores, token_buckets, unread


class PositionTables:
    """Every position score that the decoder needs up to a length, made once and sliced at each step; rows share them.

    It holds no module, so that the cache it is kept on can be copied.
    """

    def __init__(self, absolute: Tensor, buckets: Tensor, cross: Tensor) -> None:
        self.absolute = absolute  # (heads, n, n), causal mask in it
        self.buckets = buckets  # (n, n)
        self.cross = cross  # (1, heads, n, S)
        self._biases: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        """Positions 0..length - 1 are covered."""
        return self.buckets.shape[0]

    def self_bias(self, layer: int, table: Tensor) -> Tensor:
        """The bias of one layer over all positions, (1, heads, n, n), made at the layer's first visit."""
        if layer not in self._biases:
            self._biases[layer] = (self.absolute + F.embedding(self.buckets, table).permute(2, 0, 1))[None]
        return self._biases[layer]


@dataclass
class DecoderBiases:
    """The finished biases of one call of the decoder: T new tokens, at positions start..start + T - 1, over K keys."""

    tables: PositionTables
    relative: nn.ModuleList
    start: int
    stop: int
    where: Tensor | None  # (B, K) positions of padded rows; None: all rows stand at 0..K-1
    masked: Tensor | None  # (B, 1, T, K)
    cross: Tensor  # (B or b or 1, heads, T, S)

    def self_bias(self, layer: int) -> Tensor:
        """(B or 1, heads, T, K) for one layer."""
        weight: Any = self.relative[layer].weight
        table = self.tables.self_bias(layer, weight)
        if self.where is None or self.masked is None:
            return table[:, :, self.start : self.stop, : self.stop]
        query = self.where[:, self.start :, None]
        bias = table[0][:, query, self.where[:, None, :]].transpose(0, 1)
        return bias.masked_fill(self.masked, unread(bias.dtype))


class OFADecoder(OFAPreTrainedModel):
    """Text tokens over the encoder's states; the raw output of any layer can be read out through `layer_norm` and the head."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        width, heads, layers = config.d_model, config.decoder_attention_heads, config.decoder_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.pos_ln = nn.LayerNorm(width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.self_position_scores = PositionScores(width, heads)
        self.cross_position_scores = PositionScores(width, heads)
        self.token_rel_pos = nn.ModuleList(nn.Embedding(2 * config.token_bucket_size - 1, heads) for _ in range(layers))
        self.layers = nn.ModuleList(OFADecoderLayer(config, index) for index in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self.post_init()

    def relative_tables(self) -> list[nn.Module]:
        """Every relative position table, which start at zero."""
        return list(self.token_rel_pos)

    def tables(self, start: int, stop: int, encoder_positions: Tensor, past_key_values: Cache | None) -> PositionTables:
        """Tables that reach to `stop`. With a cache they are kept on it, grow by doubling, and start anew with an empty cache."""
        longest = self.config.max_position_embeddings
        if stop > longest:
            raise InputError(f"the decoder was asked for {stop} positions. This model has {longest}: lower max_length.")
        if past_key_values is None:
            return self._tables(stop, encoder_positions)
        kept: PositionTables | None = getattr(past_key_values, "ofa_tables", None)
        if kept is None or start == 0 or kept.length < stop:
            kept = self._tables(min(longest, max(32, 2 ** math.ceil(math.log2(stop)))), encoder_positions)
            past_key_values.ofa_tables = kept
        return kept

    def _tables(self, length: int, encoder_positions: Tensor) -> PositionTables:
        positions = self.pos_ln(self.embed_positions.weight[:length])
        where = torch.arange(length, device=positions.device)
        absolute = self.self_position_scores(positions, positions)
        absolute = absolute.masked_fill(where[None, :] > where[:, None], unread(absolute.dtype))
        buckets = token_buckets(where, where, self.config.token_bucket_size, self.config.max_position_embeddings)
        return PositionTables(absolute, buckets, self.cross_position_scores(positions, encoder_positions)[None])

    def biases(
        self,
        start: int,
        stop: int,
        encoder_positions: Tensor,
        decoder_mask: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> DecoderBiases:
        """Biases of the tokens start..stop - 1. Masks: (B, stop) and (b, S), one where a token may be read."""
        tables = self.tables(start, stop, encoder_positions, past_key_values)
        where = masked = None
        cross = tables.cross[:, :, start:stop]
        if decoder_mask is not None:
            where = (decoder_mask.long().cumsum(1) - 1).clamp(min=0)  # a row padded on the left still starts at position 0
            order = torch.arange(stop, device=where.device)
            masked = (decoder_mask == 0)[:, None, None, :] | (order[None, :] > order[start:, None])
            masked &= order[None, :] != order[start:, None]  # a pad reads itself: a row that reads nothing would be NaN
            cross = tables.cross[0][:, where[:, start:]].transpose(0, 1)
        if encoder_mask is not None:
            if cross.shape[0] not in (1, encoder_mask.shape[0]):
                encoder_mask = encoder_mask.repeat_interleave(cross.shape[0] // encoder_mask.shape[0], dim=0)
            cross = cross.masked_fill((encoder_mask == 0)[:, None, None, :], unread(cross.dtype))
        return DecoderBiases(tables, self.token_rel_pos, start, stop, where, masked, cross)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Ids (B, T) -> the first state of the decoder (B, T, d). Positions are not in it."""
        return F.dropout(self.layernorm_embedding(self.embed_tokens(input_ids)), self.config.dropout, self.training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_positions: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        if encoder_hidden_states is None or encoder_positions is None:
            raise InputError("the decoder needs encoder_hidden_states and encoder_positions. Give what the encoder returned.")
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        stop = start + input_ids.shape[1]
        biases = self.biases(start, stop, encoder_positions, attention_mask, encoder_attention_mask, past_key_values)
        hidden = self.embed(input_ids)
        states = [hidden]
        for index, layer in enumerate(self.layers):
            hidden = layer(
                hidden,
                biases.self_bias(index),
                encoder_hidden_states,
                biases.cross,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )
            states.append(hidden)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.layer_norm(hidden),
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
        )
