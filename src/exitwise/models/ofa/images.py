"""From any picture that a user may hand over to float32 pixels of a fixed grid, or to an error that names the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from exitwise.errors import InputError


def open_image(image: Any, name: str) -> Image.Image:
    """RGB, upright, fully read. Takes a path, a PIL image, a NumPy array or a tensor; transparency goes on white."""
    if isinstance(image, (str, Path)):
        name = f"{name} ({image})"
        image = _read(Path(image), name)
    elif isinstance(image, Tensor):
        image = _from_array(image.detach().cpu().numpy(), name)
    elif isinstance(image, np.ndarray):
        image = _from_array(image, name)
    elif not isinstance(image, Image.Image):
        raise InputError(f"{name} is a {type(image).__name__}. Give a path, a PIL image, a NumPy array or a tensor.")
    if 0 in image.size:
        raise InputError(f"{name} has size {image.size[0]} x {image.size[1]}. Both sides need at least one pixel.")
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} cannot be decoded: {error}. Is the file truncated?") from error


def _read(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            return opened
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist. Check the path.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as an image: {error}. Is the file truncated, or not an image?") from error


def _from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    """(H, W), (H, W, 1 | 3 | 4) or (1 | 3 | 4, H, W); integers of 8 or 16 bits, or floats in 0..1."""
    given = f"{name} is an array of shape {array.shape} and type {array.dtype}."
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(f"{given} Allowed are (H, W), (H, W, channels) and (channels, H, W) with 1, 3 or 4 channels.")
    if 0 in array.shape:
        raise InputError(f"{given} Both sides need at least one pixel.")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = np.round(array / 257.0)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0.0 and array.max() <= 1.0):
            raise InputError(f"{given} Floats must lie in 0..1: divide by 255 first, and do not normalise.")
        array = np.round(array * 255.0)
    elif array.min() < 0 or array.max() > 255:
        raise InputError(f"{given} Integers must lie in 0..255, or be uint16.")
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        scale = 257.0 if image.mode.startswith("I;16") or grey.max() > 255.0 else 1.0  # 16 bits: 65535 -> 255
        return Image.fromarray(np.clip(np.round(grey / scale), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def nearest_grid(width: int, height: int, grids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The [rows, columns] whose aspect is nearest, as a ratio; the first of equals."""
    aspect = math.log(width / height)
    rows, columns = min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0]) - aspect))
    return rows, columns


def pixels(image: Image.Image, rows: int, columns: int, stride: int) -> Tensor:
    """An RGB image stretched to the grid, (3, rows * stride, columns * stride), float32 in -1..1 (mean and deviation 0.5)."""
    resized = image.resize((columns * stride, rows * stride), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized, dtype=np.float32)).permute(2, 0, 1).contiguous() / 127.5 - 1.0
