"""Writes the held-out splits in the form that `exitwise bench` reads: .data/heldout/{caption,answer}/{calibration,test}.jsonl with images/.

Captions: Flickr8k, the calibration and test names of splits.json. Answers: NLVR (calibration examples of the official dev; one
permutation of every
example of the official test) and easy-VQA (calibration images of its train; its test), as many questions as sentences. Run from
the project's folder.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE, DATA = Path(__file__).parent, Path(".data")
Row = dict[str, Any]


def rows_of(file: Path) -> list[Row]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(folder: Path, split: str, rows: Iterable[tuple[Row, Path]]) -> None:
    """SPLIT.jsonl and links to the images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for row, image in rows:
        link = folder / "images" / row["image"]
        if not link.exists():
            os.symlink(image.resolve(), link)
        lines.append(json.dumps(row))
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def captions(names: dict[str, list[str]]) -> None:
    """Flickr8k's dev photographs, cut by name."""
    folder = DATA / "flickr8k"
    rows = rows_of(folder / "dev.jsonl")
    for split in ("calibration", "test"):
        chosen = set(names[split])
        write(DATA / "heldout" / "caption", split, ((r, folder / "images" / r["image"]) for r in rows if r["image"] in chosen))


def statements(split: str, keep: set[str] | None, draw: random.Random) -> list[tuple[Row, Path]]:
    """One permutation of every example of a split of NLVR (of those in `keep`)."""
    folder = DATA / "nlvr"
    found: dict[str, list[Row]] = {}
    for row in rows_of(folder / f"{split}.jsonl"):
        if keep is None or row["example"] in keep:
            found.setdefault(row["example"], []).append(row)
    return [(row, folder / "images" / row["image"]) for row in (draw.choice(rows) for rows in found.values())]


def questions(split: str, keep: set[int] | None, count: int, draw: random.Random) -> list[tuple[Row, Path]]:
    """So many questions of easy-VQA, of the images in `keep`."""
    import easy_vqa

    asked, answers, images = easy_vqa.get_test_questions() if split == "test" else easy_vqa.get_train_questions()
    paths = easy_vqa.get_test_image_paths() if split == "test" else easy_vqa.get_train_image_paths()
    candidates = sorted(easy_vqa.get_answers())
    places = [i for i, image in enumerate(images) if keep is None or image in keep]
    out = []
    for place in sorted(draw.sample(places, min(count, len(places)))):
        path = Path(paths[images[place]])
        name = f"easy-vqa-{split}-{path.name}"
        out.append(({"image": name, "question": asked[place], "answer": answers[place], "candidates": candidates}, path))
    return out


def main() -> None:
    """All that the data at hand allow."""
    names = json.loads((HERE / "splits.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    if (DATA / "flickr8k").is_dir():
        captions(names["flickr8k"])
    if (DATA / "nlvr").is_dir():
        for split, source, keep, images in (
            ("calibration", "dev", set(names["nlvr"]["calibration_examples"]), set(names["easy_vqa"]["calibration_images"])),
            ("test", "test", None, None),
        ):
            said = statements(source, keep, draw)
            asked = questions("train" if split == "calibration" else "test", images, len(said), draw)
            mixed = [*said, *asked]
            draw.shuffle(mixed)
            write(DATA / "heldout" / "answer", split, mixed)


if __name__ == "__main__":
    main()
