"""Cuts the embedded sample (src/exitwise/bench/sample) from the full data; run once from the root: make_sample.py DATA.

DATA is a folder with `nlvr/` and `coco-cc-by/` (each a jsonl and `images/`); easy-VQA comes from its pip package.
Seeded, so that it repeats. The calibration parts keep to recipes/shipped/splits.json: no image here was seen in training.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shipped"))
from asked import HUMAN, easy, made

SEED = 20221121
ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "src/exitwise/bench/sample"
NLVR_NOTE = {"licence": "CC BY 4.0", "source": "NLVR, Suhr et al. 2017"}
VQA_NOTE = {"licence": "MIT", "source": "easy-VQA 1.0, Victor Zhou 2019"}


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(task: str, split: str, rows: list[dict[str, Any]]) -> None:
    """One jsonl beside `images/`, rows in a seeded order, so that kinds of question are mixed."""
    random.Random(SEED).shuffle(rows)
    folder = SAMPLE / task
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(task, split, len(rows), "rows")


def captions(data: Path) -> None:
    """All 111 photographs, cut by image into 40 for calibration and 71 for test."""
    rows = rows_of(data / "coco-cc-by/all.jsonl")
    random.Random(SEED).shuffle(rows)
    write("caption", "calibration", rows[:40])
    write("caption", "test", rows[40:])
    for row in rows:
        shutil.copyfile(data / "coco-cc-by/images" / row["image"], SAMPLE / "caption/images" / row["image"])


def nlvr(data: Path, split: str, count: int, examples: set[str] | None) -> list[dict[str, Any]]:
    """`count` pictures of an official split, each of another `example`, the permutation drawn at random: its own sentence, a made sentence
    and a made question of each."""
    by_example: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(data / f"nlvr/{split}.jsonl"):
        if examples is None or row["example"] in examples:
            by_example.setdefault(row["example"], []).append(row)
    draw = random.Random(SEED)
    chosen = [draw.choice(by_example[example]) for example in draw.sample(sorted(by_example), count)]
    for row in chosen:
        shutil.copyfile(data / "nlvr/images" / row["image"], SAMPLE / "answer/images" / row["image"])
    own = [{key: row[key] for key in ("image", "sentence", "label", "example")} | {"group": HUMAN} for row in chosen]
    asked = [{**each, "example": row["example"]} for row in chosen for each in made(data / "nlvr/images" / row["image"], draw)]
    return [row | NLVR_NOTE for row in (*own, *asked)]


def questions(split: str, count: int, images: list[int] | None, each: int) -> list[dict[str, Any]]:
    """`each` questions about `count` images of easy-VQA."""
    import easy_vqa

    known = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    draw, rows = random.Random(SEED), []
    for row, path in easy(split, draw.sample(sorted(images or known), count), each, draw):
        target = SAMPLE / "answer/images" / row["image"]
        if not target.exists():
            with Image.open(path) as picture:
                picture.convert("RGB").save(target, optimize=True)
        rows.append(row | VQA_NOTE)
    return rows


def main() -> None:
    data = Path(sys.argv[1])
    splits = json.loads((ROOT / "recipes/shipped/splits.json").read_text(encoding="utf-8"))
    shutil.rmtree(SAMPLE / "caption", ignore_errors=True)
    shutil.rmtree(SAMPLE / "answer", ignore_errors=True)
    (SAMPLE / "answer/images").mkdir(parents=True)
    (SAMPLE / "caption/images").mkdir(parents=True)
    captions(data)
    held_out = set(splits["nlvr"]["calibration_examples"])
    write(
        "answer",
        "calibration",
        nlvr(data, "dev", 120, held_out) + questions("train", 100, splits["easy_vqa"]["calibration_images"], 3),
    )
    write("answer", "test", nlvr(data, "test", 200, None) + questions("test", 150, None, 4))


if __name__ == "__main__":
    main()
