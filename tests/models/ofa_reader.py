"""OFA by its formulas, slowly: logits from a fairseq state dict in float64, to compare the model to. Nothing of the library is imported.

Wang et al. 2022 (arXiv:2202.03052), section 3; NormFormer's norms and head scales (arXiv:2110.09456); positions apart from contents after
TUPE (arXiv:2006.15595).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tests.models.ofa_files import Size, State
from torch import Tensor


class Reader:
    """The formulas on a fairseq state dict, in float64, one row, entry by entry where that is plainer. Slow, and unlike the model."""

    def __init__(self, state: State, size: Size) -> None:
        self.state = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
        self.size = size

    def norm(self, name: str, states: Tensor) -> Tensor:
        middle = states - states.mean(-1, keepdim=True)
        scaled = middle / (middle.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, name: str, states: Tensor) -> Tensor:
        return states @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def heads(self, states: Tensor) -> Tensor:
        return states.view(states.shape[0], self.size.heads, -1).transpose(0, 1)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(1, 2) / math.sqrt(2 * self.size.width / self.size.heads)

    def attention(self, name: str, states: Tensor, others: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            self.heads(self.linear(f"{name}.{part}", each)) for part, each in (("q_proj", states), ("k_proj", others), ("v_proj", others))
        )
        mixed = (self.scores(query, key) + bias).softmax(-1) @ value * self.state[f"{name}.c_attn"][:, None, None]
        return self.linear(f"{name}.out_proj", mixed.transpose(0, 1).flatten(1))

    def feed(self, layer: str, states: Tensor) -> Tensor:
        inner = F.gelu(self.linear(f"{layer}.fc1", self.norm(f"{layer}.final_layer_norm", states)))
        return states + self.linear(f"{layer}.fc2", self.norm(f"{layer}.ffn_layernorm", inner))

    def pictures(self, name: str, pixels: Tensor) -> Tensor:
        def conv(part: str, states: Tensor, norm: str, stride: int = 1, pad: int = 0) -> Tensor:
            states = F.conv2d(states, self.state[f"{part}.weight"], stride=stride, padding=pad)
            kinds = ("running_mean", "running_var", "weight", "bias")
            mean, var, scale, shift = (self.state[f"{norm}.{kind}"][:, None, None] for kind in kinds)
            return (states - mean) / (var + 1e-5).sqrt() * scale + shift

        states = F.max_pool2d(conv(f"{name}.conv1", pixels[None].double(), f"{name}.bn1", 2, 3).relu(), 3, 2, 1)
        for stage, count in enumerate(self.size.blocks, start=1):
            for index in range(count):
                block, stride = f"{name}.layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
                branch = conv(f"{block}.conv1", states, f"{block}.bn1").relu()
                branch = conv(f"{block}.conv2", branch, f"{block}.bn2", stride, 1).relu()
                branch = conv(f"{block}.conv3", branch, f"{block}.bn3")
                if index == 0:
                    states = conv(f"{block}.downsample.0", states, f"{block}.downsample.1", stride)
                states = (states + branch).relu()
        return states[0]

    def relative(self, table: str, index: Tensor) -> Tensor:
        """(heads, T, T) of a layer's table, cell by cell."""
        rows = self.state[f"{table}.weight"]
        return torch.stack([torch.stack([rows[int(each)] for each in line]) for line in index]).permute(2, 0, 1)

    def embedded(self, grid: Tensor, source: list[int]) -> tuple[Tensor, Tensor, list[int]]:
        """What enters the encoder, of the stem's features (C, rows, columns) and a text: states, positions, and numbers of the cells."""
        types = self.state["encoder.type_embedding.weight"]
        cells = [(row, column) for row in range(grid.shape[1]) for column in range(grid.shape[2])]
        image = torch.stack([grid[:, row, column] for row, column in cells])
        image = self.norm("encoder.patch_layernorm_embedding", self.linear("encoder.image_proj", image) + types[1])
        text = self.norm("encoder.layernorm_embedding", self.state["encoder.embed_tokens.weight"][source] + types[0])
        ids = [row * self.size.image + column + 1 for row, column in cells]
        where = torch.cat([
            self.norm("encoder.image_pos_ln", self.state["encoder.embed_image_positions.weight"][ids]),
            self.norm("encoder.pos_ln", self.state["encoder.embed_positions.weight"][: len(source)]),
        ])  # fmt: skip
        return torch.cat([image, text]), where, ids

    def encoder_layer(self, index: int, states: Tensor, where: Tensor, ids: list[int], decomposed: bool = False) -> Tensor:
        """One layer on image tokens, then text tokens."""
        layer, first, words = f"encoder.layers.{index}", len(ids), len(states) - len(ids)
        query, key = (self.heads(self.linear(f"encoder.pos_{each}_linear", where)) for each in "qk")
        bias = self.scores(query, key)
        if decomposed:
            bias[:, :first, first:] = bias[:, first:, :first] = -math.inf
        near = self.state["encoder.image_rp_bucket"][ids][:, ids]
        bias[:, :first, :first] += self.relative(f"encoder.image_rel_pos_table_list.{index}", near)
        near = self.state["encoder.token_rp_bucket"][:words, :words]
        bias[:, first:, first:] += self.relative(f"encoder.token_rel_pos_table_list.{index}", near)
        before = self.norm(f"{layer}.self_attn_layer_norm", states)
        states = states + self.norm(f"{layer}.attn_ln", self.attention(f"{layer}.self_attn", before, before, bias))
        return self.feed(layer, states)

    def decoder_layer(self, index: int, states: Tensor, encoded: Tensor, where: Tensor) -> Tensor:
        """One layer on the decoder's tokens over the encoder's."""
        layer, length = f"decoder.layers.{index}", len(states)
        own = self.norm("decoder.pos_ln", self.state["decoder.embed_positions.weight"][:length])

        def positions(kind: str, keys: Tensor) -> Tensor:
            query, key = self.linear(f"decoder.{kind}_pos_q_linear", own), self.linear(f"decoder.{kind}_pos_k_linear", keys)
            return self.scores(self.heads(query), self.heads(key))

        bias = positions("self", own).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        bias = bias + self.relative(f"decoder.token_rel_pos_table_list.{index}", self.state["decoder.token_rp_bucket"][:length, :length])
        before = self.norm(f"{layer}.self_attn_layer_norm", states)
        states = states + self.norm(f"{layer}.self_attn_ln", self.attention(f"{layer}.self_attn", before, before, bias))
        before = self.norm(f"{layer}.encoder_attn_layer_norm", states)
        mixed = self.attention(f"{layer}.encoder_attn", before, encoded, positions("cross", where))
        return self.feed(layer, states + self.norm(f"{layer}.cross_attn_ln", mixed))

    def head(self, states: Tensor) -> Tensor:
        """Logits of the decoder's states."""
        return self.norm("decoder.layer_norm", states) @ self.state["decoder.output_projection.weight"].T

    def logits(self, pixels: Tensor, source: list[int], target: list[int], decomposed: bool = False) -> Tensor:
        """(T, vocabulary) of an image (3, H, W), a text and what the decoder was given."""
        states, where, ids = self.embedded(self.pictures("encoder.embed_images", pixels), source)
        for index in range(self.size.encoder):
            states = self.encoder_layer(index, states, where, ids, decomposed)
        encoded = self.norm("encoder.layer_norm", states)
        states = self.norm("decoder.layernorm_embedding", self.state["decoder.embed_tokens.weight"][target])
        for index in range(self.size.decoder):
            states = self.decoder_layer(index, states, encoded, where)
        return self.head(states)
