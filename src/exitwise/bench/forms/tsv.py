"""OFA's own TSV files: images are base64 text in the rows, and stay there; only where they stand is kept.

A caption's row: id, image id, caption (several joined by &&), labels of objects, image. An entailment's row: id, image id, image,
hypothesis, caption, label. (OFA's datasets.md; the file's name is the split: caption_val.tsv, snli_ve_dev.tsv.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path

from exitwise.errors import InputError

from ..items import CAPTION_PROMPT, SKIP, Item, Kind, Reading, Row, Split
from ..pictures import Embedded
from .entailment import entailment

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "caption": ("id", "image id", "caption", "labels of objects", "image"),
    "answer": ("id", "image id", "image", "hypothesis", "caption", "label"),
}


def splits(folder: Path) -> list[Split]:
    """One split for each *.tsv."""
    return [Split(file.stem, file, partial(_rows, file)) for file in folder.glob("*.tsv")]


def _rows(file: Path, reading: Reading) -> Iterator[Row]:
    """The file is read line by line; a line lives no longer than its item's making. Rows with the same image share its place."""
    places: dict[bytes, Embedded] = {}
    start = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            where = f"{file.name}:{number}"
            if line.strip():
                yield where, partial(_item, file, where, start, line, reading, places)
            start += len(line)


def _item(file: Path, where: str, start: int, line: bytes, reading: Reading, places: dict[bytes, Embedded]) -> Item:
    names = COLUMNS[reading.kind]
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) != len(names):
        kind = "a caption's" if reading.kind == "caption" else "an entailment's"
        raise InputError(f"{where}: {len(columns)} columns. {kind.capitalize()} row has {len(names)}: {', '.join(names)}. {SKIP}")
    at = names.index("image")
    text = columns[at]
    if not text:
        raise InputError(f"{where}: the column of the image is empty. {SKIP}")
    place = Embedded(file, start + sum(len(column) + 1 for column in columns[:at]), len(text))
    image = places.setdefault(blake2b(text, digest_size=16).digest(), place)
    try:
        field = {name: "" if name == "image" else column.decode() for name, column in zip(names, columns)}
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: the row is not UTF-8 ({error}). {SKIP}") from error
    name = field["image id"].strip() or field["id"].strip()
    if reading.kind == "answer":
        return entailment(name, where, image, field["hypothesis"], field["caption"], field["label"], reading)
    captions = tuple(caption.strip() for caption in field["caption"].split("&&") if caption.strip())
    if not captions:
        raise InputError(f"{where}: {name} has no caption. {SKIP}")
    return Item(name, where, image, CAPTION_PROMPT, captions)
