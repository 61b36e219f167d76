"""A batch that any model of a known configuration can be called with, and what the model says to it."""

from __future__ import annotations

import inspect as signatures
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

STEPS = 4


def example_inputs(model: nn.Module, rows: int = 2) -> dict[str, Tensor]:
    """A padded batch of noise and random words, made from the model's configuration. Raises InputError if that does not say enough."""
    config: Any = getattr(model, "config", None)
    if config is None:
        raise InputError(
            f"{type(model).__name__} has no `config` to make inputs from. Pass `inputs`, a dict of what the model is called with."
        )
    wanted = _wanted(model)
    dice = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    if "pixel_values" in wanted:
        made["pixel_values"] = torch.randn(rows, *_picture(config), generator=dice)
    if "input_features" in wanted:
        made["input_features"] = torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=dice)
    if "input_ids" in wanted:
        made |= _words(model, config, rows, made.get("pixel_values"), dice)
    if not made:
        raise InputError(f"{type(model).__name__} wants {', '.join(sorted(wanted))}, which cannot be guessed. Pass `inputs`.")
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {n: v.to(device, kind) if v.is_floating_point() else v.to(device) for n, v in made.items()}


def _wanted(model: Any) -> set[str]:
    """Names of the inputs that must be given: the main one, those without a default, and pixels wherever the model takes them."""
    wanted = {getattr(model, "main_input_name", "input_ids")}
    for function in (model.generate, model.forward) if writes(model) else (model.forward,):
        parameters = signatures.signature(function).parameters.values()
        wanted |= {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        wanted |= {p.name for p in parameters if p.name == "pixel_values"}
    return wanted


def _picture(config: Any) -> tuple[int, int, int]:
    """(channels, height, width)."""
    grids, stride = getattr(config, "image_grids", None), getattr(config, "stem_stride", None)
    if grids and stride:
        return 3, grids[0][0] * stride, grids[0][1] * stride
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    if hasattr(vision, "patch_stride"):  # any size will do: four cells a side
        size = 4 * math.prod(vision.patch_stride)
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(vision, "num_channels", None) or 3, height, width


def _words(model: Any, config: Any, rows: int, pixels: Tensor | None, dice: torch.Generator) -> dict[str, Tensor]:
    """Twelve random words a row, the last row padded: on the left where a decoder goes on from them, else on the right.

    Where the model wants them, placeholders for the image come first.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    pad = next((p for p in (getattr(text, "pad_token_id", None), getattr(config, "pad_token_id", None)) if p is not None), 0)
    ids = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (rows, 12), generator=dice)
    image = getattr(config, "image_token_id", None)
    if image is not None:
        ids = torch.where(ids == image, ids - 1, ids)
        if pixels is not None:
            with torch.no_grad():
                features = model.get_image_features(pixels.to(next(model.parameters())))
            count = features.pooler_output.shape[1] if hasattr(features, "pooler_output") else features.shape[1]
            ids = torch.cat([ids.new_full((rows, count), image), ids], 1)
    mask = torch.ones_like(ids)
    continued = writes(model) and pixels is None and not getattr(config, "is_encoder_decoder", False)
    place = slice(None, 4) if continued else slice(-4, None)
    ids[-1, place], mask[-1, place] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


def writes(model: Any) -> bool:
    """Whether the model has a `generate` of its own."""
    return bool(getattr(model, "can_generate", lambda: False)())


def answer(model: Any, inputs: Mapping[str, Any], tokens: Tensor | None = None) -> Tensor:
    """What a model says, without gradients: logits of a few greedy steps (rows, steps, vocabulary), or those of its forward.

    tokens: (rows, steps) ids that it is made to write instead of its own, so that two runs can be compared.
    """
    with torch.no_grad():
        if not writes(model):
            out = model(**inputs)
            found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
            return found if isinstance(found, Tensor) else next(v for v in _parts(out) if isinstance(v, Tensor))
        more: dict[str, Any] = {"num_beams": 1, "do_sample": False, "max_new_tokens": STEPS, "return_dict_in_generate": True}
        if tokens is not None:
            ahead: list[int] = []

            def allowed(row: int, ids: Tensor) -> list[int]:
                ahead.append(ids.shape[0])
                return [int(tokens[row % len(tokens), min(ids.shape[0] - ahead[0], tokens.shape[1] - 1)])]

            more |= {"prefix_allowed_tokens_fn": allowed, "min_new_tokens": STEPS}
        return torch.stack(model.generate(**inputs, output_logits=True, **more).logits, 1)


def _parts(out: Any) -> list[Any]:
    return list(out.values()) if hasattr(out, "values") else list(out)
