"""Cuts the calibration, validation and test splits of the shipped model, and writes their names to splits.json."""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20260


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut(flickr_dev: list[str], nlvr_examples: list[str], easy_vqa_images: list[int]) -> dict[str, dict[str, list[object]]]:
    """Names per data set and split. NLVR is drawn by sentence (the number before the dash): none of them is trained on."""
    draw = random.Random(SEED)
    flickr = sorted(flickr_dev)
    draw.shuffle(flickr)
    sentences = sorted({name.split("-")[0] for name in nlvr_examples})
    draw.shuffle(sentences)
    held: list[object] = []
    for sentence in sentences:
        if len(held) >= 200:
            break
        held += sorted(name for name in set(nlvr_examples) if name.split("-")[0] == sentence)
    images = sorted(easy_vqa_images)
    draw.shuffle(images)
    return {
        "flickr8k": {"calibration": [*flickr[:400]], "validation": [*flickr[:200]], "test": [*flickr[400:]]},
        "nlvr": {"calibration_examples": held[:200]},
        "easy_vqa": {"calibration_images": sorted(images[:300])},
    }


def main(data: Path = Path(".data")) -> None:
    """Writes splits.json beside this file."""
    from easy_vqa import get_train_image_paths

    flickr = [str(row["image"]) for row in read_rows(data / "flickr8k" / "dev.jsonl")]
    nlvr = [str(row["example"]) for row in read_rows(data / "nlvr" / "dev.jsonl")]
    splits = cut(flickr, nlvr, list(get_train_image_paths()))
    (HERE / "splits.json").write_text(json.dumps(splits, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
