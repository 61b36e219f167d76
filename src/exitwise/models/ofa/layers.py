"""The layers of OFA: pre-LN blocks with NormFormer's extra norms and head scales; position enters only as a finished bias.

Block (Shleifer et al. 2021, arXiv:2110.09456): x + LN(scaled heads(LN(x))), then x + fc2(LN(gelu(fc1(LN(x))))).
A bias holds position scores and masks together and is (B or 1, heads, queries, keys); what is masked holds `positions.unread`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration import OFAConfig


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """The branch, or zeros for a random `rate` of the rows; the others are scaled up so that the mean stays."""
    if rate == 0.0 or not training:
        return branch
    keep = torch.empty(branch.shape[0], 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(1.0 - rate)
    return branch * (keep / (1.0 - rate))


class OFAAttention(nn.Module):
    """Attention with head scales; content scores are divided by sqrt(2 head_dim), as are the position scores in the bias."""

    def __init__(self, width: int, heads: int, dropout: float, layer_idx: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.scale = (2 * self.head_dim) ** -0.5
        self.dropout = dropout
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.c_attn = nn.Parameter(torch.ones(heads))

    def split(self, states: Tensor) -> Tensor:
        """(B, T, d) -> (B, heads, T, head_dim), without a copy."""
        return states.view(states.shape[0], states.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of these states, each (B, heads, T, head_dim)."""
        return self.split(self.k_proj(states)), self.split(self.v_proj(states))

    def finish(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """From the heads to (B, T, d): attend, scale the heads, project."""
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=self.scale).transpose(1, 2)
        return self.out_proj((heads * self.c_attn[:, None]).flatten(2))


class SelfAttention(OFAAttention):
    """Attention of a stream to itself; with a cache, to all that the cache of this layer holds too."""

    def forward(self, hidden: Tensor, bias: Tensor, past_key_values: Cache | None = None) -> Tensor:
        key, value = self.keys_values(hidden)
        if past_key_values is not None:
            cache = past_key_values.self_attention_cache if isinstance(past_key_values, EncoderDecoderCache) else past_key_values
            key, value = cache.update(key, value, self.layer_idx)
        return self.finish(self.split(self.q_proj(hidden)), key, value, bias)


class CrossAttention(OFAAttention):
    """Attention of the decoder to the encoder's states, of which there may be one row for several rows of the decoder."""

    def forward(self, hidden: Tensor, states: Tensor, bias: Tensor, past_key_values: Cache | None = None) -> Tensor:
        query = self.q_proj(hidden)
        if isinstance(past_key_values, EncoderDecoderCache):
            key, value = self._cached(states, hidden.shape[0], past_key_values)
        else:
            key, value = self.keys_values(states)
        times = hidden.shape[0] // key.shape[0]
        if times == 1:
            if bias.shape[0] not in (1, key.shape[0]):
                bias = bias.repeat_interleave(key.shape[0] // bias.shape[0], dim=0)
            return self.finish(self.split(query), key, value, bias)
        # Several rows share one row of keys: they become queries of one longer row, and nothing is repeated.
        folded = query.reshape(key.shape[0], times * query.shape[1], query.shape[2])
        return self.finish(self.split(folded), key, value, fold_bias(bias, key.shape[0], times)).view_as(query)

    def _cached(self, states: Tensor, rows: int, past: EncoderDecoderCache) -> tuple[Tensor, Tensor]:
        """Filled at the first visit of this layer, with a row for each row of the decoder so that beams can be reordered."""
        if past.is_updated.get(self.layer_idx):
            layer: Any = past.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self.keys_values(states)
        if key.shape[0] != rows:
            key, value = (kept.repeat_interleave(rows // kept.shape[0], dim=0) for kept in (key, value))
        past.is_updated[self.layer_idx] = True
        key, value = past.cross_attention_cache.update(key, value, self.layer_idx)
        return key, value


def fold_bias(bias: Tensor, rows: int, times: int) -> Tensor:
    """(1 or rows or rows * times, h, T, S) -> (1 or rows, h, times * T, S), for queries that were folded into longer rows."""
    count, heads, queries, keys = bias.shape
    if count in (1, rows):
        return bias.repeat(1, 1, times, 1)
    return bias.view(rows, times, heads, queries, keys).transpose(1, 2).reshape(rows, heads, times * queries, keys)


class _Block(GradientCheckpointingLayer):
    """What the layers of both stacks share: the residual, and the feed-forward half."""

    def _feed_forward(self, width: int, inner: int) -> None:
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.ffn_layer_norm = nn.LayerNorm(inner)
        self.fc2 = nn.Linear(inner, width)

    def add(self, residual: Tensor, branch: Tensor) -> Tensor:
        """The residual plus its branch; dropout and drop-path while training."""
        if self.training:
            branch = drop_path(F.dropout(branch, self.dropout), self.drop_path, True)
        return residual + branch

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The second half of the block with its residual."""
        inner = self.ffn_layer_norm(F.gelu(self.fc1(self.final_layer_norm(hidden))))
        return self.add(hidden, self.fc2(inner))


class OFAEncoderLayer(_Block):
    """layer(hidden (B, S, d), bias (B or 1, heads, S, S), or an object that makes it when asked) -> hidden."""

    def __init__(self, config: OFAConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.d_model
        self.dropout = config.dropout
        self.drop_path = config.drop_path * layer_idx / max(config.encoder_layers - 1, 1)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, config.encoder_attention_heads, config.attention_dropout, layer_idx)
        self.self_attn_mid_layer_norm = nn.LayerNorm(width)
        self._feed_forward(width, config.encoder_ffn_dim)

    def forward(self, hidden: Tensor, attention_bias: Any) -> Tensor:
        if not isinstance(attention_bias, Tensor):
            attention_bias = attention_bias.finished()
        branch = self.self_attn(self.self_attn_layer_norm(hidden), attention_bias)
        hidden = self.add(hidden, self.self_attn_mid_layer_norm(branch))
        return self.feed_forward(hidden)


class OFADecoderLayer(_Block):
    """layer(hidden (B, T, d), bias (B or 1, heads, T, K), encoder states (b, S, d), cross bias (B or b or 1, heads, T, S)) -> hidden.

    The encoder may have b = B / k rows: each then serves k rows of the decoder that follow each other.
    """

    def __init__(self, config: OFAConfig, layer_idx: int) -> None:
        super().__init__()
        width, heads = config.d_model, config.decoder_attention_heads
        self.dropout = config.dropout
        self.drop_path = config.drop_path * layer_idx / max(config.decoder_layers - 1, 1)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, heads, config.attention_dropout, layer_idx)
        self.self_attn_mid_layer_norm = nn.LayerNorm(width)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads, config.attention_dropout, layer_idx)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(width)
        self._feed_forward(width, config.decoder_ffn_dim)

    def forward(
        self,
        hidden: Tensor,
        attention_bias: Tensor,
        encoder_hidden_states: Tensor,
        cross_bias: Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> Tensor:
        branch = self.self_attn(self.self_attn_layer_norm(hidden), attention_bias, past_key_values)
        hidden = self.add(hidden, self.self_attn_mid_layer_norm(branch))
        branch = self.cross_attn(self.cross_attn_layer_norm(hidden), encoder_hidden_states, cross_bias, past_key_values)
        hidden = self.add(hidden, self.cross_attn_mid_layer_norm(branch))
        return self.feed_forward(hidden)
