"""Checkpoint files of OFA as its makers' fairseq and the fork of transformers write them, with random weights.

Written from what those two store (names, shapes, indexes), not from this library's model: nothing of it is imported.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

LAYOUTS = ("fairseq", "fork")
State = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """One row of the paper's table of sizes; `text` and `image` are the bucket sizes of the relative tables."""

    width: int
    heads: int
    encoder: int
    decoder: int
    blocks: tuple[int, int, int]
    vocabulary: int = 59457
    text: int = 256
    image: int = 42


SIZES = {
    "tiny": Size(256, 4, 4, 4, (3, 4, 6)),
    "medium": Size(512, 8, 4, 4, (3, 4, 23)),
    "base": Size(768, 12, 6, 6, (3, 4, 23)),
    "large": Size(1024, 16, 12, 12, (3, 8, 36)),
    "huge": Size(1280, 16, 24, 12, (3, 8, 36)),
}
SMALL = Size(32, 4, 3, 2, (3, 4, 6), vocabulary=9500, text=8, image=6)


def shapes(size: Size, layout: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint, by its name in this layout."""
    fairseq, width, found = layout == "fairseq", size.width, OrderedDict[str, tuple[int, ...]]()
    cells, span = size.image**2 + 1, (2 * size.image - 1) ** 2 + 3

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, wide: int = width) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (wide,), (wide,)

    def attention(name: str) -> None:
        found[f"{name}.c_attn"] = (size.heads,)
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{name}.{part}", width, width)

    for side, layers in (("encoder", size.encoder), ("decoder", size.decoder)):
        if fairseq:
            found[f"{side}.version"] = (1,)
        found[f"{side}.token_rp_bucket"], found[f"{side}.image_rp_bucket"] = (1024, 1024), (cells, cells)
        if side == "decoder":
            found["decoder.image_position_idx"] = (1026 if fairseq else 1025,)
        found[f"{side}.embed_tokens.weight"] = (size.vocabulary, width)
        norm(f"{side}.layernorm_embedding")
        if side == "encoder":
            found["encoder.type_embedding.weight"] = (2, width)
            found |= stem("encoder.embed_images", size.blocks)
            linear("encoder.image_proj", 1024, width)
            norm("encoder.patch_layernorm_embedding")
        found[f"{side}.embed_positions.weight"], found[f"{side}.embed_image_positions.weight"] = (1026, width), (cells, width)
        norm(f"{side}.pos_ln")
        norm(f"{side}.image_pos_ln")
        for kind in ("",) if side == "encoder" else ("self_", "cross_"):
            linear(f"{side}.{kind}pos_q_linear", width, width)
            linear(f"{side}.{kind}pos_k_linear", width, width)
        if side == "decoder":
            norm("decoder.code_layernorm_embedding")
        for index in range(layers):
            layer = f"{side}.layers.{index}"
            attention(f"{layer}.self_attn")
            norm(f"{layer}.self_attn_layer_norm")
            norm(f"{layer}.{('attn_ln' if side == 'encoder' else 'self_attn_ln') if fairseq else 'self_attn_mid_layer_norm'}")
            if side == "decoder":
                attention(f"{layer}.{'encoder_attn' if fairseq else 'cross_attn'}")
                norm(f"{layer}.{'encoder_attn_layer_norm' if fairseq else 'cross_attn_layer_norm'}")
                norm(f"{layer}.{'cross_attn_ln' if fairseq else 'cross_attn_mid_layer_norm'}")
            linear(f"{layer}.fc1", width, 4 * width)
            linear(f"{layer}.fc2", 4 * width, width)
            norm(f"{layer}.{'ffn_layernorm' if fairseq else 'ffn_layer_norm'}", 4 * width)
            norm(f"{layer}.final_layer_norm")
            found[f"{side}.token_rel_pos_table_list.{index}.weight"] = (2 * size.text - 1, size.heads)
            found[f"{side}.image_rel_pos_table_list.{index}.weight"] = (span, size.heads)
        norm(f"{side}.layer_norm")
    found["decoder.output_projection.weight"] = (size.vocabulary, width)
    return found


def stem(name: str, blocks: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """A ResNet without its last stage: a wide convolution, then bottlenecks of 64, 128 and 256 channels, four times that at their ends."""
    found: dict[str, tuple[int, ...]] = {f"{name}.conv1.weight": (64, 3, 7, 7)}

    def batch_norm(norm: str, channels: int) -> None:
        found.update({f"{norm}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        found[f"{norm}.num_batches_tracked"] = ()

    batch_norm(f"{name}.bn1", 64)
    inputs = 64
    for stage, (count, thin) in enumerate(zip(blocks, (64, 128, 256)), start=1):
        for block in range(count):
            where = f"{name}.layer{stage}.{block}"
            found[f"{where}.conv1.weight"] = (thin, inputs, 1, 1)
            found[f"{where}.conv2.weight"] = (thin, thin, 3, 3)
            found[f"{where}.conv3.weight"] = (4 * thin, thin, 1, 1)
            for norm, channels in (("bn1", thin), ("bn2", thin), ("bn3", 4 * thin)):
                batch_norm(f"{where}.{norm}", channels)
            if block == 0:
                found[f"{where}.downsample.0.weight"] = (4 * thin, inputs, 1, 1)
                batch_norm(f"{where}.downsample.1", 4 * thin)
            inputs = 4 * thin
    return found


def text_index(size: int) -> Tensor:
    """[query, key] -> row of a text table: query minus key, near distances one by one, far ones in logarithmic buckets up to 1023."""
    middle, found = size // 2, np.zeros((1024, 1024), dtype=np.int64)
    rows = np.zeros(2047, dtype=np.int64)
    for distance in range(-1023, 1024):
        row = abs(distance)
        if row > middle:
            row = min(math.ceil(math.log(row / middle) / math.log(1023 / middle) * (middle - 1) - 1e-9) + middle, size - 1)
        rows[distance + 1023] = math.copysign(row, distance) + size - 1
    where = np.arange(1024)
    found[:] = rows[where[:, None] - where[None, :] + 1023]
    return torch.from_numpy(found)


def image_index(size: int) -> Tensor:
    """[query, key] -> row of an image table: query minus key, down and across; position 0 belongs to no cell and has rows of its own."""
    cell = np.stack(np.divmod(np.arange(size**2), size), -1)
    down, across = np.moveaxis(cell[:, None] - cell[None, :], -1, 0) + size - 1
    found = np.full((size**2 + 1,) * 2, (2 * size - 1) ** 2, dtype=np.int64)
    found[:, 0] += 1
    found[0, 0] += 1
    found[1:, 1:] = down * (2 * size - 1) + across
    return torch.from_numpy(found)


def weights(size: Size, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random weights in fairseq's layout, none of them silent; the vocabulary is one tensor under three names."""
    generator, found = torch.Generator().manual_seed(seed), State()
    for name, shape in shapes(size, "fairseq").items():
        noise = torch.randn(shape, generator=generator) if name.split(".")[-1] not in INDEXES else torch.zeros(())
        if name.endswith(("token_rp_bucket", "image_rp_bucket")):
            value = text_index(size.text) if "token" in name else image_index(size.image)
        elif name.endswith("image_position_idx"):
            code = torch.arange(256)
            value = torch.cat([torch.tensor([0]), code // 16 * size.image + code % 16 + 1, torch.full((769,), 1024)])
        elif name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif name.endswith("version"):
            value = torch.tensor([3.0], dtype=dtype)
        elif name.endswith("running_var"):
            value = (0.5 + noise.abs()).to(dtype)
        elif len(shape) == 1:
            value = (noise * 0.2 + (not name.endswith(("bias", "running_mean")))).to(dtype)
        elif "embed" in name and "images" not in name:
            value = noise.to(dtype)
        else:
            value = (noise * (0.4 if "rel_pos" in name else 1.5 * math.prod(shape[1:]) ** -0.5)).to(dtype)
        found[name] = value
    found["decoder.embed_tokens.weight"] = found["decoder.output_projection.weight"] = found["encoder.embed_tokens.weight"]
    return found


INDEXES = ("token_rp_bucket", "image_rp_bucket", "image_position_idx", "version", "num_batches_tracked")


def as_fork(state: State, size: Size) -> State:
    """The same weights under the fork's names, in the order of the two lists."""
    kept = [name for name in shapes(size, "fairseq") if not name.endswith(".version")]
    found = {new: state[old] for old, new in zip(kept, shapes(size, "fork"))}
    found["decoder.image_position_idx"] = found["decoder.image_position_idx"][:-1].clone()
    return found


def write_fairseq(file: Path, state: State, zipped: bool = True, **settings: Any) -> Path:
    """A container as fairseq's trainer leaves it after a fine-tuning, optimizer and meters included."""
    side = 16 * min(30, math.isqrt(len(state["decoder.embed_image_positions.weight"])))
    stated = {"arch": "ofa", "attn_scale_factor": 2.0, "disable_entangle": True, "no_scale_embedding": True, "patch_image_size": side}
    container = {
        "args": None,
        "cfg": {"_name": None, "common": {"seed": 7, "fp16": True}, "model": argparse.Namespace(**{**stated, **settings})},
        "model": OrderedDict(state),
        "criterion": None,
        "optimizer_history": [{"criterion_name": "AdjustLabelSmoothedCrossEntropyCriterion", "num_updates": 3}],
        "task_state": {},
        "extra_state": {"metrics": OrderedDict(default=[(0, "loss", {"val": torch.tensor(2.0)})]), "best": np.float64(1.25)},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }
    torch.save(container, file, _use_new_zipfile_serialization=zipped)
    return file


def write_fork(folder: Path, state: State, size: Size, safetensors: bool = False, **settings: Any) -> Path:
    """A folder as the fork's save_pretrained leaves it: weights under the fork's names, and a config.json in its words."""
    folder.mkdir(parents=True, exist_ok=True)
    if safetensors:  # which holds nothing twice
        tied = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
        save_file({name: value.contiguous() for name, value in state.items() if name not in tied}, folder / "model.safetensors")
    else:
        torch.save(OrderedDict(state), folder / "pytorch_model.bin")
    config = {
        "architectures": ["OFAModel"], "model_type": "ofa", "activation_function": "gelu", "attn_scale_factor": 2.0, "normformer": True,
        "scale_embedding": False, "d_model": size.width, "encoder_layers": size.encoder, "decoder_layers": size.decoder,
        "encoder_attention_heads": size.heads, "decoder_attention_heads": size.heads, "transformers_version": "4.18.0.dev0",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def write_vocabulary(folder: Path, words: int, fairseq: bool) -> Path:
    """A byte-level vocabulary with two merges and made-up words up to so many, in the files of either."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    known = [chr(byte) for byte in letters] + [chr(256 + index) for index in range(256 - len(letters))]
    known += ["ho", "Ġho"]
    made = [f"madeupword{index:04d}" for index in range(words - 5 - len(known))]
    merges = "#version: 0.2\nh o\nĠ ho\n"
    if not fairseq:
        listed = ["<s>", "<pad>", "</s>", "<unk>", *known, *made, "<mask>"]
        (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(listed)}))
        (folder / "merges.txt").write_text(merges)
        return folder
    shuffled = np.random.default_rng(0).permutation(len(known))  # fairseq numbers its words twice
    (folder / "encoder.json").write_text(json.dumps({word: int(number) for word, number in zip(known, shuffled)}))
    (folder / "vocab.bpe").write_text(merges)
    (folder / "dict.txt").write_text("".join(f"{number} 0\n" for number in [*map(int, shuffled), *made]))
    return folder
