"""Reads an NLVR picture back into boxes of items (exactly, by colour), so that sentences about it can be made with a known truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from recolour import COLOURS, VALUES
from scipy import ndimage

BOX_LEFT = (0, 150, 300)
BOX = 100
TOUCH = 2  # pixels between an item and the wall that still count as touching
GROUNDS = np.array([(211, 211, 211), (128, 128, 128)], dtype=np.float64)


@dataclass(frozen=True)
class Item:
    """One coloured item; x and y are its left and top edge in its box, in pixels of the original picture."""

    colour: str
    shape: str
    size: int
    x: int
    y: int
    walls: frozenset[str]

    @property
    def touching(self) -> bool:
        """Whether it touches any wall of its box."""
        return bool(self.walls)


@dataclass(frozen=True)
class Scene:
    """Three boxes of items; in a scene of towers each box lists its blocks from the base to the top."""

    boxes: tuple[tuple[Item, ...], ...]
    towers: bool

    @property
    def items(self) -> tuple[Item, ...]:
        """All items of all boxes."""
        return tuple(item for box in self.boxes for item in box)


def shape_of(mask: np.ndarray) -> str:
    """Square, circle or triangle, by how much of its bounding box is filled (1, 0.785, 0.5)."""
    fill = float(mask.mean())
    return "square" if fill > 0.93 else "circle" if fill > 0.66 else "triangle"


def classes_of(pixels: np.ndarray) -> np.ndarray:
    """(H, W): 0 yellow, 1 black, 2 blue, 3 and above ground, by the nearest colour."""
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    shades, place = np.unique(packed, return_inverse=True)
    colours = np.stack([shades >> 16, shades >> 8 & 255, shades & 255], axis=-1)[:, None].astype(np.float64)
    nearest = np.linalg.norm(colours - np.concatenate([VALUES, GROUNDS]), axis=-1).argmin(-1)
    out: np.ndarray = nearest[place.reshape(-1)].reshape(pixels.shape[:2])
    return out


def items_of(classes: np.ndarray) -> list[Item]:
    """The items of one box."""
    items = []
    for index, colour in enumerate(COLOURS):
        labels, _ = ndimage.label(classes == index)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[rows, columns] == number
            if mask.sum() < 20:  # a sliver of a soft edge, not an item (the smallest triangle has about 50 pixels)
                continue
            far = {"left": columns.start, "top": rows.start, "right": BOX - columns.stop, "bottom": BOX - rows.stop}
            walls = frozenset(side for side, gap in far.items() if gap < TOUCH)
            size = max(mask.shape)
            items.append(Item(colour, shape_of(mask), size, columns.start, rows.start, walls))
    return items


def is_tower(items: list[Item]) -> bool:
    """Whether a box's items are equal squares stacked from the floor in one column."""
    blocks = sorted(items, key=lambda item: -item.y)
    return (
        bool(blocks)
        and all(item.shape == "square" and item.x == blocks[0].x and 18 <= item.size <= 21 for item in blocks)
        and "bottom" in blocks[0].walls
        and blocks[0].x in range(36, 45)
        and all(below.y - above.y in (20, 21, 22) for below, above in zip(blocks, blocks[1:], strict=False))
    )


def parse(image: Image.Image) -> Scene:
    """The scene of a 400x100 NLVR picture."""
    classes = classes_of(np.asarray(image.convert("RGB")))
    boxes = [items_of(classes[:, left : left + BOX]) for left in BOX_LEFT]
    filled = [box for box in boxes if box]
    towers = bool(filled) and all(is_tower(box) for box in filled)
    return Scene(tuple(tuple(sorted(box, key=lambda item: -item.y)) for box in boxes), towers)


def swapped(scene: Scene, swap: tuple[int, ...]) -> Scene:
    """The scene after its colours were swapped as in `recolour_image`."""
    recoloured = tuple(tuple(replace(item, colour=COLOURS[swap[COLOURS.index(item.colour)]]) for item in box) for box in scene.boxes)
    return Scene(recoloured, scene.towers)


KINDS = tuple((colour, shape) for colour in COLOURS for shape in ("square", "circle", "triangle"))


def cells_of(scene: Scene, rows: int = 5, columns: int = 20) -> np.ndarray:
    """(rows * columns, kinds) float32: items of each colour and shape whose centre lies in each cell of a grid over the picture."""
    out = np.zeros((rows, columns, len(KINDS)), dtype=np.float32)
    for left, box in zip(BOX_LEFT, scene.boxes, strict=True):
        for item in box:
            x, y = left + item.x + item.size / 2, item.y + item.size / 2
            out[min(int(y * rows / BOX), rows - 1), min(int(x * columns / 400), columns - 1), KINDS.index((item.colour, item.shape))] += 1
    return out.reshape(rows * columns, len(KINDS))
