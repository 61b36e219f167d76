"""The encoder of OFA: image tokens, then text tokens, through one stack; position biases are made here, once a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from exitwise.errors import InputError

from .base import OFAPreTrainedModel
from .configuration import OFAConfig
from .layers import OFAEncoderLayer
from .positions import PositionScores, image_buckets, image_positions, token_buckets, unread
from .stem import Stem


@dataclass
class OFAEncoderOutput(ModelOutput):
    """`last_hidden_state` (B, S, d), image tokens first; `position_embeddings` (1, S, d), which the decoder's cross bias needs;
    `hidden_states`, on request: the embeddings and each layer's raw output, before the final norm."""

    last_hidden_state: Tensor | None = None
    position_embeddings: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Embedded:
    """What enters the encoder's layers: tokens, and all that their biases are made of."""

    hidden: Tensor  # (B, S, d)
    positions: Tensor  # (S, d), after the norms
    image_index: Tensor | None  # (I, I) buckets of the image's cells
    text_index: Tensor | None  # (L, L) buckets of the text's tokens
    masked: Tensor | None  # (B or 1, 1, S or 1, S), true where nothing is to be read
    absolute: dict[tuple[int, int] | None, Tensor] = field(default_factory=dict)  # by span of tokens, made when asked for


class LazyBias:
    """One layer's bias, made when the layer asks for it: a skipped layer costs nothing, a lone stream pays for itself only.

    `pick_rows` and `cut_tokens` are what a walk with exits needs of an argument that is not a tensor.
    """

    def __init__(
        self, encoder: OFAEncoder, embedded: Embedded, layer: int, span: tuple[int, int] | None = None, rows: Tensor | None = None
    ) -> None:
        self.encoder, self.embedded, self.layer, self.span, self.rows = encoder, embedded, layer, span, rows

    def pick_rows(self, rows: Tensor) -> LazyBias:
        """The same for some rows of the batch."""
        return LazyBias(self.encoder, self.embedded, self.layer, self.span, rows)

    def cut_tokens(self, span: tuple[int, int]) -> LazyBias:
        """The same for the tokens from span[0] to before span[1], to each other."""
        return LazyBias(self.encoder, self.embedded, self.layer, span, self.rows)

    def finished(self) -> Tensor:
        """(B or 1, heads, S, S)."""
        bias = self.encoder.layer_bias(self.layer, self.embedded, self.span)
        return bias if self.rows is None or bias.shape[0] == 1 else bias.index_select(0, self.rows)


class OFAEncoder(OFAPreTrainedModel):
    """Image tokens, then text tokens, through one stack of layers and one final norm."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        width, heads, layers = config.d_model, config.encoder_attention_heads, config.encoder_layers
        self.stem = Stem(config)
        self.image_proj = nn.Linear(config.stem_channels, width)
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.type_embedding = nn.Embedding(2, width)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.position_scores = PositionScores(width, heads)
        self.token_rel_pos = nn.ModuleList(nn.Embedding(2 * config.token_bucket_size - 1, heads) for _ in range(layers))
        self.image_rel_pos = nn.ModuleList(nn.Embedding((2 * config.image_bucket_size - 1) ** 2, heads) for _ in range(layers))
        self.layers = nn.ModuleList(OFAEncoderLayer(config, index) for index in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self.post_init()

    def relative_tables(self) -> list[nn.Module]:
        """Every relative position table, which start at zero."""
        return [*self.token_rel_pos, *self.image_rel_pos]

    def embed_image(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, rows, columns, C) -> tokens (B, I, d), positions (I, d), relative buckets (I, I)."""
        _, rows, columns, channels = features.shape
        size = self.config.image_bucket_size
        if channels != self.config.stem_channels or max(rows, columns) > size:
            raise InputError(
                f"image features of shape {tuple(features.shape)} do not fit: the last size must be {self.config.stem_channels}"
                f" and the grid at most {size} x {size} cells."
            )
        row, column = image_positions(rows, columns, features.device)
        tokens = self.image_proj(features.flatten(1, 2).to(self.image_proj.weight.dtype)) + self.type_embedding.weight[1]
        tokens = self.patch_layernorm_embedding(tokens)
        positions = self.image_pos_ln(self.embed_image_positions(row * size + column))
        return tokens, positions, image_buckets(row, column, size)

    def embed_text(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (B, L) -> tokens (B, L, d), positions (L, d), relative buckets (L, L)."""
        length, longest = input_ids.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise InputError(f"the text has {length} tokens. This model reads at most {longest}: shorten it.")
        tokens = self.layernorm_embedding(self.embed_tokens(input_ids) + self.type_embedding.weight[0])
        where = torch.arange(length, device=input_ids.device)
        positions = self.pos_ln(self.embed_positions.weight[:length])
        return tokens, positions, token_buckets(where, where, self.config.token_bucket_size, longest)

    def embed(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Embedded:
        """Everything before the first layer. One of image and text may be missing."""
        if image_features is None and pixel_values is not None:
            image_features = self.stem(pixel_values.to(self.image_proj.weight.dtype))
        if image_features is None and input_ids is None:
            raise InputError("the encoder got neither text nor image. Give input_ids, pixel_values or image_features.")
        image = self.embed_image(image_features) if image_features is not None else None
        text = self.embed_text(input_ids) if input_ids is not None else None
        parts = [part for part in (image, text) if part is not None]
        hidden = torch.cat([part[0] for part in parts], 1) if len(parts) == 2 else parts[0][0]
        positions = torch.cat([part[1] for part in parts]) if len(parts) == 2 else parts[0][1]
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        cells = image[1].shape[0] if image is not None else 0
        masked = self._masked(attention_mask, cells, hidden)
        return Embedded(hidden, positions, image[2] if image is not None else None, text[2] if text is not None else None, masked)

    def _masked(self, attention_mask: Tensor | None, cells: int, hidden: Tensor) -> Tensor | None:
        """Pads of the text and, if decomposed, all that lies between image and text."""
        length = hidden.shape[1]
        masked = None
        if attention_mask is not None:
            masked = F.pad(attention_mask == 0, (length - attention_mask.shape[1], 0))[:, None, None, :]
        if self.config.decomposed and 0 < cells < length:
            image = torch.arange(length, device=hidden.device) < cells
            apart = (image[:, None] != image[None, :])[None, None]
            masked = apart if masked is None else masked | apart
        return masked

    def absolute_bias(self, embedded: Embedded, span: tuple[int, int] | None = None) -> Tensor:
        """Position scores with the masks in them, (B or 1, heads, S, S): shared by all layers; made once per span of tokens (None: all)."""
        if span not in embedded.absolute:
            start, stop = span or (0, embedded.hidden.shape[1])
            positions, masked = embedded.positions[start:stop], embedded.masked
            bias = self.position_scores(positions, positions)[None]
            if masked is not None:
                masked = masked[..., start:stop]
                masked = masked[:, :, start:stop] if masked.shape[2] > 1 else masked
            cells = 0 if embedded.image_index is None else embedded.image_index.shape[0]
            if masked is not None and (span is None or stop > cells):  # no pads among the image's tokens
                bias = bias.masked_fill(masked, unread(bias.dtype))
            embedded.absolute[span] = bias
        return embedded.absolute[span]

    def layer_bias(self, layer: int, embedded: Embedded, span: tuple[int, int] | None = None) -> Tensor:
        """The finished bias of one layer: the shared part plus this layer's tables, inside each modality."""
        absolute = self.absolute_bias(embedded, span)
        image_table: Any = self.image_rel_pos[layer].weight
        if not self.config.image_rel_bias:  # added and then lost, as in MuE's released code
            image_table = torch.zeros_like(image_table)
        text_table: Any = self.token_rel_pos[layer].weight
        cells = 0 if embedded.image_index is None else embedded.image_index.shape[0]
        length = embedded.hidden.shape[1]
        parts = [(embedded.image_index, image_table, (0, cells)), (embedded.text_index, text_table, (cells, length))]
        for index, table, place in parts:
            if index is not None and (span == place or place == (0, length)):
                return absolute + F.embedding(index, table).permute(2, 0, 1)
        blocks = [F.embedding(index, table).permute(2, 0, 1) for index, table, _ in parts if index is not None]
        both = F.pad(blocks[0], (0, length - cells, 0, length - cells)) + F.pad(blocks[1], (cells, 0, cells, 0))
        start, stop = span or (0, length)
        return absolute + both[:, start:stop, start:stop]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> OFAEncoderOutput | tuple[Any, ...]:
        embedded = self.embed(input_ids, pixel_values, image_features, attention_mask)
        hidden = embedded.hidden
        states = [hidden]
        for index, layer in enumerate(self.layers):
            bias = LazyBias(self, embedded, index)
            # Checkpointing runs a layer twice and must find the same work both times: what layers share is made outside.
            hidden = layer(hidden, bias.finished() if self.training else bias)
            states.append(hidden)
        output = OFAEncoderOutput(
            last_hidden_state=self.layer_norm(hidden),
            position_embeddings=embedded.positions[None],
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output
