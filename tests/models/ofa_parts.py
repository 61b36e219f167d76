"""How far the parts of a float32 OFA are from the formulas in float64, each on what really came in to it, for one size of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.models.ofa_files import Size, weights, write_fairseq
from tests.models.ofa_reader import Reader
from torch import Tensor, nn

from exitwise.models.ofa import OFAForConditionalGeneration, load_checkpoint

SOURCE, TARGET = [0, 40, 41, 52, 9, 40, 2], [0, 77, 8, 1234, 9]


def deviations(size: Size, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Part -> largest deviation over its calls, as a share of its largest entry; 'whole' is from the pixels to the logits.

    Random weights as a fairseq file, loaded as a user's; an image of 2 x 3 cells.
    """
    state = weights(size, seed)
    model, _ = load_checkpoint(write_fairseq(folder / f"{size.width}.pt", state), dtype=dtype, decomposed=False)
    pixels = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(seed + 3))
    seen = _seen(model, pixels)
    reader = Reader(state, size)
    where, ids = reader.embedded(seen["stem"][0][1][0].permute(2, 0, 1).double(), SOURCE)[1:]
    wanted = {
        "stem": [reader.pictures("encoder.embed_images", pixels).permute(1, 2, 0)],
        "embedding": [reader.embedded(seen["stem"][0][1][0].permute(2, 0, 1).double(), SOURCE)[0]],
        "encoder layer": [reader.encoder_layer(i, got[0][0].double(), where, ids) for i, got in enumerate(seen["encoder layer"])],
        "decoder layer": [
            reader.decoder_layer(i, got[0][0].double(), seen["encoder norm"][0][1][0].double(), where)
            for i, got in enumerate(seen["decoder layer"])
        ],
        "head": [reader.head(seen["decoder layer"][-1][1][0].double())],
        "whole": [reader.logits(pixels, SOURCE, TARGET)],
    }
    got = {part: [out[0] for _, out in calls] for part, calls in seen.items()}
    got |= {"embedding": [seen["encoder layer"][0][0][0]], "whole": got["head"]}
    return {part: max(_share(mine, theirs) for mine, theirs in zip(got[part], each, strict=True)) for part, each in wanted.items()}


def _share(mine: Tensor, wanted: Tensor) -> float:
    assert mine.shape == wanted.shape, (mine.shape, wanted.shape)
    return float((mine.double() - wanted).abs().max() / wanted.abs().max())


def _seen(model: OFAForConditionalGeneration, pixels: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Part -> (what came in, what came out) of each of its calls in one pass."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    parts = [("stem", model.model.stem), ("encoder norm", model.model.encoder.layer_norm), ("head", model.lm_head)]
    parts += [(f"{side} layer", layer) for side in ("encoder", "decoder") for layer in getattr(model.model, side).layers]

    def watch(part: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, given, out: found.setdefault(part, []).append((given[0], out)))

    handles = [watch(part, module) for part, module in parts]
    ids = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TARGET])}
    with torch.no_grad():
        model(**ids, pixel_values=pixels[None].to(model.dtype))
    for handle in handles:
        handle.remove()
    return found
