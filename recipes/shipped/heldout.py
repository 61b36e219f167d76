"""Writes the held-out splits in the form that `exitwise bench` reads: .data/heldout/{caption,answer}/{calibration,test}.jsonl with images/.

Captions: Flickr8k, the calibration and test names of splits.json. Answers: NLVR and easy-VQA, both splits cut from the official test
splits, so that calibration and test are of one source. Run from the project's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from random import Random

from asked import HUMAN, Row, easy, made

HERE, DATA = Path(__file__).parent, Path(".data")
SAMPLE = HERE.parents[1] / "src" / "exitwise" / "bench" / "sample"


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


def sample_of() -> tuple[set[str], set[int]]:
    """NLVR examples and easy-VQA images of the embedded test sample: nothing may be chosen on them."""
    rows = rows_of(SAMPLE / "answer" / "test.jsonl")
    images = {row["image"] for row in rows}
    numbers = {int(name.rpartition("-")[2].removesuffix(".png")) for name in images if name.startswith("easy-vqa-test-")}
    return {row["example"] for row in rows if "example" in row}, numbers


def answers(calibration: tuple[int, int] = (260, 300), test: tuple[int, int] = (250, 250)) -> None:
    """Both splits from the official test splits, of other examples and images: so many of NLVR and of easy-VQA.

    Of each NLVR example one permutation, with its human sentence, a made sentence and a made question; as many questions of easy-VQA.
    """
    import easy_vqa

    draw, folder = Random(0), DATA / "nlvr"
    shown, drawn = sample_of()
    found: dict[str, list[Row]] = {}
    for row in rows_of(folder / "test.jsonl"):
        found.setdefault(row["example"], []).append(row)
    examples, images = (sorted(known, key=str) for known in (found, easy_vqa.get_test_image_paths()))
    for names in (examples, images):
        draw.shuffle(names)
    free_examples, free_images = [e for e in examples if e not in shown], [i for i in images if i not in drawn]
    cut_examples, cut_images = free_examples[: calibration[0]], free_images[: calibration[1]]
    others = [e for e in examples if e not in set(cut_examples)], [i for i in images if i not in set(cut_images)]
    for split, mine, pictures in (
        ("calibration", cut_examples, cut_images),
        ("test", others[0][: test[0]], others[1][: test[1]]),
    ):
        rows: list[tuple[Row, Path]] = []
        for example in mine:
            row = draw.choice(found[example])
            image = folder / "images" / row["image"]
            rows += [({**row, "group": HUMAN}, image), *(({**each, "example": example}, image) for each in made(image, draw))]
        rows += easy("test", pictures, -(-len(rows) // len(pictures)), draw)[: len(rows)]
        draw.shuffle(rows)
        write(DATA / "heldout" / "answer", split, rows)


def main() -> None:
    """All that the data at hand allow."""
    names = json.loads((HERE / "splits.json").read_text(encoding="utf-8"))
    if (DATA / "flickr8k").is_dir():
        captions(names["flickr8k"])
    if (DATA / "nlvr").is_dir():
        answers()


if __name__ == "__main__":
    main()
