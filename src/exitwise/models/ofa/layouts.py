"""How OFA's weights lie in the files of others: names, shapes and what becomes of each, for fairseq and for the fork of transformers.

Both hold the same tensors; some norms and the attention to the encoder have other names. Three things are not as they are here: their
relative tables count from the key to the query (ours the other way round), their position tables have rows that are never read, and the
vocabulary lies there up to three times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitwise.errors import CheckpointError

from .configuration import OFAConfig
from .positions import image_buckets, image_positions, token_buckets

FAIRSEQ, FORK = "fairseq", "fork"
SIZES = ("tiny", "medium", "base", "large", "huge")
STEMS = ([3, 4, 6], [3, 4, 23], [3, 8, 36])  # ResNet-50, -101 and -152, up to their third stage
LONGEST = 1024  # positions of every OFA, over which the text's buckets are laid
VOCABULARY = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
TOLD_BY = (  # from their shapes the sizes are read
    "encoder.layernorm_embedding.weight", "encoder.embed_image_positions.weight", "encoder.token_rel_pos_table_list.0.weight",
    "decoder.token_rel_pos_table_list.0.weight", "encoder.layers.0.fc1.weight", "decoder.layers.0.fc1.weight",
)  # fmt: skip
OURS_TIED = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")

# From our name to the fork's, and from the fork's to fairseq's; every rule is applied, in this order.
_TO_FORK = (
    (r"^model\.", ""),
    (r"^encoder\.stem\.trunk\.", "encoder.embed_images."),
    (r"^encoder\.position_scores\.([qk])_linear\.", r"encoder.pos_\1_linear."),
    (r"^decoder\.(self|cross)_position_scores\.([qk])_linear\.", r"decoder.\1_pos_\2_linear."),
    (r"\.(token|image)_rel_pos\.", r".\1_rel_pos_table_list."),
)
_TO_FAIRSEQ = (
    (r"^(encoder\.layers\.\d+)\.self_attn_mid_layer_norm\.", r"\1.attn_ln."),
    (r"^(decoder\.layers\.\d+)\.self_attn_mid_layer_norm\.", r"\1.self_attn_ln."),
    (r"\.cross_attn_mid_layer_norm\.", ".cross_attn_ln."),
    (r"\.cross_attn(_layer_norm)?\.", r".encoder_attn\1."),
    (r"\.ffn_layer_norm\.", ".ffn_layernorm."),
)

# Settings that change numbers and that this model has one value of. A file need not state them.
_FAIRSEQ_ONLY = {
    "attn_scale_factor": 2, "no_scale_embedding": True, "encoder_normalize_before": True, "decoder_normalize_before": True,
    "activation_fn": "gelu", "entangle_position_embedding": False, "disable_entangle": True, "interpolate_position": False,
    "sync_bn": False, "cross_self_attention": False, "no_cross_attention": False,
}  # fmt: skip
_FORK_ONLY = {
    "attn_scale_factor": 2, "scale_embedding": False, "encoder_normalize_before": True, "decoder_normalize_before": True,
    "activation_function": "gelu", "entangle_position_embedding": False, "normformer": True,
}  # fmt: skip
_COUNTED = (
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "token_bucket_size",
    "image_bucket_size",
)


@dataclass(frozen=True)
class Place:
    """What becomes of one tensor of a file: its `shape` there (None: any), our name for it, or why it is left over.

    `change` turns it into ours, `note` says how, or why it is left over. What is not `needed` may be missing.
    """

    shape: tuple[int, ...] | None
    ours: str | None = None
    note: str = ""
    change: Callable[[Tensor], Tensor] | None = None
    needed: bool = True


def layout_of(tensors: Mapping[str, Tensor]) -> str:
    """FAIRSEQ or FORK, by the name of the decoder's attention to the encoder. Raises CheckpointError for weights that are not an OFA's."""
    if "model.encoder.position_scores.q_linear.weight" in tensors:
        raise CheckpointError(
            "These weights carry Exitwise's own names already: OFAForConditionalGeneration.from_pretrained loads their folder."
        )
    if not all(any(part in name for name in tensors) for part in ("encoder.embed_images.", "image_rel_pos_table_list.")):
        raise CheckpointError(
            f"These are not the weights of an OFA: {len(tensors)} tensors, such as {min(tensors, default='none')!r}, but no ResNet stem "
            "(encoder.embed_images) or no relative tables (image_rel_pos_table_list). Other models load as transformers loads them."
        )
    lacking = [name for name in TOLD_BY if name not in tensors or 0 in (len(tensors[name].shape), *tensors[name].shape)]
    if not any(name in tensors for name in VOCABULARY):
        lacking.append(f"{VOCABULARY[0]} (or another of the vocabulary's names)")
    if lacking:
        raise CheckpointError(f"The sizes of this OFA cannot be told: missing or empty are {', '.join(lacking)}. Find a whole checkpoint.")
    return FAIRSEQ if any(".encoder_attn." in name for name in tensors) else FORK


def recognise(tensors: Mapping[str, Tensor], decomposed: bool = False, image_grids: list[list[int]] | None = None) -> OFAConfig:
    """The configuration that these shapes are of; what they do not show is given. Raises CheckpointError where they cannot be an OFA's."""

    def rows(name: str) -> int:
        return tensors[name].shape[0]

    def count(pattern: str) -> int:
        found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    blocks = [count(rf"encoder\.embed_images\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3)]
    if blocks not in STEMS:
        raise CheckpointError(
            f"The stem has {blocks} blocks in its three stages. OFA's are {', '.join(map(str, STEMS))} (ResNet-50, -101, -152)."
        )
    heads = [tensors[f"{side}.token_rel_pos_table_list.0.weight"].shape[-1] for side in ("encoder", "decoder")]
    vocabulary = next(name for name in VOCABULARY if name in tensors)
    return OFAConfig(
        vocab_size=rows(vocabulary),
        d_model=rows("encoder.layernorm_embedding.weight"),
        encoder_layers=count(r"encoder\.layers\.(\d+)\."),
        decoder_layers=count(r"decoder\.layers\.(\d+)\."),
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=rows("encoder.layers.0.fc1.weight"),
        decoder_ffn_dim=rows("decoder.layers.0.fc1.weight"),
        max_position_embeddings=LONGEST,
        token_bucket_size=(rows("encoder.token_rel_pos_table_list.0.weight") + 1) // 2,
        image_bucket_size=(side := math.isqrt(rows("encoder.embed_image_positions.weight"))),
        image_grids=image_grids or [[min(30, side)] * 2],
        decomposed=decomposed,
        resnet_blocks=blocks,
    )


def size_of(config: OFAConfig) -> str:
    """The official size that this is, or 'custom'. The vocabulary does not count: fine-tuning may have added to it."""
    fields = (*_COUNTED, "d_model", "encoder_ffn_dim", "decoder_ffn_dim", "resnet_blocks")
    for name in SIZES:
        official = OFAConfig.size(name)
        if all(getattr(official, field) == getattr(config, field) for field in fields):
            return name
    return "custom"


def check_settings(settings: Mapping[str, Any], config: OFAConfig, fairseq: bool) -> None:
    """Raises CheckpointError where a file states what this model does not do, or other sizes than its weights have."""
    for name, value in (_FAIRSEQ_ONLY if fairseq else _FORK_ONLY).items():
        if name in settings and settings[name] != value:
            raise CheckpointError(f"The checkpoint was made with {name} = {settings[name]!r}. This model computes with {value!r} only.")
    for name in _COUNTED:
        if name in settings and settings[name] != getattr(config, name):
            raise CheckpointError(
                f"The settings say {name} = {settings[name]!r}, the weights {getattr(config, name)}. They do not belong together: find the "
                "configuration of these weights, or put the weights into a folder by themselves."
            )


def places(config: OFAConfig, ours: Mapping[str, Tensor], layout: str) -> dict[str, Place]:
    """Every tensor that a file of this layout may hold, by its name there. `ours`: the state of our model, for its names and shapes."""
    found = {
        name: Place((config.vocab_size, config.d_model), OURS_TIED[0], "the vocabulary, held once", needed=False) for name in VOCABULARY
    }
    for name, weight in ours.items():
        if name not in OURS_TIED:
            found[_renamed(name, layout)] = _place(name, tuple(weight.shape), config)
    return {**found, **_left_over(config)}


def _renamed(name: str, layout: str) -> str:
    for pattern, theirs in _TO_FORK if layout == FORK else (*_TO_FORK, *_TO_FAIRSEQ):
        name = re.sub(pattern, theirs, name)
    return name


def _place(name: str, shape: tuple[int, ...], config: OFAConfig) -> Place:
    first, rest = shape[0] if shape else 0, shape[1:]
    if name.endswith(".embed_positions.weight"):
        return Place((first + 2, *rest), name, f"rows 0 to {first - 1}: the last 2 are never read", lambda table: table[:-2])
    if name.endswith(".embed_image_positions.weight"):
        return Place((first + 1, *rest), name, "without row 0, which belongs to no cell", lambda table: table[1:])
    if ".token_rel_pos." in name:
        return Place(shape, name, "rows in reverse", lambda table: table.flip(0))
    if ".image_rel_pos." in name:
        return Place(
            (first + 3, *rest), name, "rows in reverse, without the last 3, which belong to no cells", lambda table: table[:-3].flip(0)
        )
    return Place(shape, name, needed=not name.endswith(".num_batches_tracked"))


def _left_over(config: OFAConfig) -> dict[str, Place]:
    """What this model has no use for. The decoder here has text positions only; image codes carry 2-D positions there."""
    width, cells, span = config.d_model, config.image_bucket_size**2 + 1, (2 * config.image_bucket_size - 1) ** 2 + 3
    codes = "2-D positions of image codes that the decoder writes; text has none of them"
    found = {}
    for side in ("encoder", "decoder"):
        found[f"{side}.version"] = Place((1,), note="the version of fairseq's format", needed=False)
        found[f"{side}.token_rp_bucket"] = Place((LONGEST, LONGEST), note="an index that is computed here; it was compared", needed=False)
        found[f"{side}.image_rp_bucket"] = Place((cells, cells), note="an index that is computed here; it was compared", needed=False)
    found["decoder.image_position_idx"] = Place(None, note=codes, needed=False)
    found["decoder.embed_image_positions.weight"] = Place((cells, width), note=codes, needed=False)
    for norm in ("image_pos_ln", "code_layernorm_embedding"):
        for part in ("weight", "bias"):
            found[f"decoder.{norm}.{part}"] = Place((width,), note=codes, needed=False)
    for layer in range(config.decoder_layers):
        name = f"decoder.image_rel_pos_table_list.{layer}.weight"
        found[name] = Place((span, config.decoder_attention_heads), note=codes, needed=False)
    return found


def check_indexes(tensors: Mapping[str, Tensor], config: OFAConfig) -> None:
    """Raises CheckpointError where a file's own indexes of the relative tables are not those that this model computes."""
    text, last = config.token_bucket_size, (2 * config.image_bucket_size - 1) ** 2 - 1
    where = torch.arange(LONGEST)
    # Rounding puts the farthest distance one bucket behind the table on some machines; it is never read.
    theirs = 2 * text - 2 - token_buckets(where, where, text, LONGEST)
    row, column = image_positions(config.image_bucket_size, config.image_bucket_size, torch.device("cpu"))
    for side in ("encoder", "decoder"):
        buckets = tensors.get(f"{side}.token_rp_bucket")
        if buckets is not None and not torch.equal(buckets.clamp(0, 2 * text - 2), theirs):
            raise CheckpointError(
                f"{side}.token_rp_bucket is not the index that OFA computes: the text's distances are told apart otherwise."
            )
        cells = tensors.get(f"{side}.image_rp_bucket")
        if cells is not None and not torch.equal(last - cells[1:, 1:], image_buckets(row, column, config.image_bucket_size)):
            raise CheckpointError(f"{side}.image_rp_bucket is not the index that OFA computes: the image's cells are told apart otherwise.")
