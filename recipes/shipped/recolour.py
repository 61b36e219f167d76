"""Swaps yellow, black and blue in an NLVR image and in its sentence, so that one labelled pair gives six."""

from __future__ import annotations

import random
import re
from itertools import permutations

import numpy as np
from PIL import Image

COLOURS = ("yellow", "black", "blue")
VALUES = np.array([(255, 255, 0), (0, 0, 0), (0, 153, 255)], dtype=np.float64)
GROUND = np.array((211, 211, 211), dtype=np.float64)
SWAPS: tuple[tuple[int, ...], ...] = tuple(permutations(range(3)))[1:]  # the five that change something


def swaps_of(image: str, copies: int = 2) -> list[tuple[int, ...]]:
    """The swaps drawn for one image, the same on every run: colour i becomes colour swap[i]."""
    return random.Random(image).sample(SWAPS, copies)


def recolour_image(image: Image.Image, swap: tuple[int, ...]) -> Image.Image:
    """The RGB image with its colours swapped; soft edges (mixtures of ground and colour) are mixed anew."""
    pixels = np.asarray(image.convert("RGB"))
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    codes, place = np.unique(packed, return_inverse=True)
    shades = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1)
    away = VALUES - GROUND  # (3, 3)
    offset = shades - GROUND  # (n, 3)
    share = (offset @ away.T) / (away**2).sum(-1)  # (n, 3): how much of each colour is in the shade
    miss = np.linalg.norm(offset[:, None] - share[..., None] * away, axis=-1)  # (n, 3)
    best = miss.argmin(-1)
    rows = np.arange(len(shades))
    amount = share[rows, best]
    mixed = GROUND + amount[:, None] * away[np.asarray(swap)[best]]
    keep = (miss[rows, best] > 12) | (amount < 0.02) | (np.ptp(shades, axis=1) == 0) & (shades[:, 0] == 128)
    new = np.where(keep[:, None], shades, mixed.round().clip(0, 255)).astype(np.uint8)
    return Image.fromarray(new[place.reshape(-1)].reshape(pixels.shape))


def recolour_text(sentence: str, swap: tuple[int, ...]) -> str:
    """The sentence with its colour words swapped in the same way."""
    return re.sub("|".join(COLOURS), lambda found: COLOURS[swap[COLOURS.index(found.group())]], sentence)
