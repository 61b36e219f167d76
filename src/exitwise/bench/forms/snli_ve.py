"""SNLI-VE's jsonl with the photos of Flickr30k: {"Flickr30K_ID", "sentence1" (the photo's caption), "sentence2", "gold_label"}.

The photos lie in images/, flickr30k-images/ or flickr30k_images/ beside the file (a link will do), or in the file's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exitwise.errors import InputError

from ..items import SKIP, Item, Reading
from .entailment import entailment

FOLDERS = ("images", "flickr30k-images", "flickr30k_images", ".")
FIELDS = ("sentence1", "sentence2", "gold_label")


def is_row(row: Any) -> bool:
    """Whether a parsed line is a row of SNLI-VE, and not one of ours."""
    return isinstance(row, dict) and "image" not in row and ("sentence2" in row or "gold_label" in row)


def item(file: Path, where: str, row: dict[str, Any], reading: Reading) -> Item:
    """The item of one row. Raises InputError that begins with `where`."""
    if reading.kind != "answer":
        raise InputError(f"{where}: SNLI-VE's rows are of the task answer, not {reading.kind}. Give --task answer.")
    for name in FIELDS:
        if not isinstance(row.get(name), str):
            raise InputError(f"{where}: {name!r} is missing or no text. A row has {', '.join(FIELDS)} and Flickr30K_ID. {SKIP}")
    name = _photo(row, where)
    image = next((place for folder in FOLDERS if (place := file.parent / folder / name).is_file()), None)
    if image is None:
        raise InputError(f"{where}: the image {name} is in none of {', '.join(FOLDERS)} beside {file.name}. {SKIP}")
    return entailment(name, where, image, row["sentence2"], row["sentence1"], row["gold_label"], reading)


def _photo(row: dict[str, Any], where: str) -> str:
    """The photo's file name: from its id, or from the id of its caption ("123.jpg#2")."""
    given = next((row[key] for key in ("Flickr30K_ID", "Flickr30k_ID", "captionID") if row.get(key)), None)
    if given is None:
        raise InputError(f"{where}: neither Flickr30K_ID nor captionID says which photo it is about. {SKIP}")
    name = str(given).partition("#")[0].strip()
    return name if name.endswith(".jpg") else f"{name}.jpg"
