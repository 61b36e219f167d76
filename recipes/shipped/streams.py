"""The training forward of the decomposed model: each image is encoded once, and several texts or captions share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from exitwise.models.ofa import OFAForConditionalGeneration
from exitwise.models.ofa.decoder import DecoderBiases
from exitwise.models.ofa.positions import unread


@dataclass(frozen=True)
class Batch:
    """`rows` decoder rows follow each other for every image. Captions share one source text (1, L); answers have one per row."""

    kind: str  # of the course's cycle: "caption", "reward", "imitate", "sentences", "questions"; "answer" for both of the latter
    features: Tensor  # (images, rows, columns, channels)
    source: Tensor  # (1 or images * k, L) ids, padded on the right
    decoder_input: Tensor  # (images * k, T)
    labels: Tensor  # (images * k, T), -100 where nothing is asked
    depths: tuple[int, int] | None = None  # layers that the image and the text walk in the encoder; None: all
    cells: Tensor | None = None  # (images, rows * columns, kinds): how many items of each kind have their centre in each cell


@dataclass(frozen=True)
class Memory:
    """What the decoder reads: one row per image, [image ; text of row 1 ; ... ; text of row k], with the bias that keeps rows apart."""

    states: Tensor  # (images, S, d)
    cross: Tensor  # (1 or images * k, heads, T, S)
    biases: DecoderBiases  # of the decoder's attention to itself


def walk_encoder(
    model: OFAForConditionalGeneration, ids: Tensor | None, features: Tensor | None, mask: Tensor | None, depth: int | None = None
) -> tuple[Tensor, Tensor]:
    """One stream through the first `depth` layers of the encoder (None: all): normed states (B, S, d) and positions (S, d)."""
    encoder = model.model.encoder
    whole = encoder.layers
    encoder.layers = whole[:depth]
    try:
        output = encoder(input_ids=ids, image_features=features, attention_mask=mask)
    finally:
        encoder.layers = whole
    return output.last_hidden_state, output.position_embeddings[0]


def remember(model: OFAForConditionalGeneration, batch: Batch, length: int) -> Memory:
    """Both streams, laid out so that keys and values are computed once per image and once per text."""
    pad = model.config.pad_token_id
    depths = batch.depths or (None, None)
    image, image_at = walk_encoder(model, None, batch.features, None, depths[0])
    mask = batch.source != pad
    text, text_at = walk_encoder(model, batch.source, None, mask.long(), depths[1])
    images, cells = image.shape[:2]
    decoder = model.model.decoder
    biases = decoder.biases(0, length, torch.cat([image_at, text_at]))
    scores = biases.cross  # (1, heads, T, I + L)
    if len(batch.source) == 1:
        return Memory(torch.cat([image, text.expand(images, -1, -1)], 1), scores, biases)
    times, width = len(batch.source) // images, text.shape[1]
    states = torch.cat([image, text.reshape(images, times * width, -1)], 1)
    own = torch.eye(times, dtype=torch.bool)[None, :, :, None] & mask.view(images, 1, times, width)  # (images, row, text, L)
    closed = F.pad(~own.reshape(images * times, 1, 1, times * width), (cells, 0), value=False)
    tiled = torch.cat([scores[..., :cells], scores[..., cells:].repeat(1, 1, 1, times)], -1)
    return Memory(states, tiled.masked_fill(closed, unread(tiled.dtype)), biases)


def decoder_states(model: OFAForConditionalGeneration, batch: Batch, memory: Memory | None = None) -> list[Tensor]:
    """The raw output of every decoder layer, each (images * k, T, d): what the layer-wise loss reads out."""
    decoder = model.model.decoder
    memory = memory or remember(model, batch, batch.decoder_input.shape[1])
    hidden = decoder.embed(batch.decoder_input)
    states = []
    for index, layer in enumerate(decoder.layers):
        hidden = layer(hidden, memory.biases.self_bias(index), memory.states, memory.cross)
        states.append(hidden)
    return states
