"""Karpathy's json for COCO, Flickr30k and Flickr8k: one dataset*.json names the images, their sentences and their splits.

An entry: {"filename", "filepath"?, "split", "sentences": [{"raw"}, ...]}. Images lie in images/ or beside the file, in their `filepath`
where one is named. COCO's `restval` is trained on with `train`, as ever since (113,287 images).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from exitwise.errors import InputError

from ..items import CAPTION_PROMPT, SKIP, Item, Reading, Row, Split

TRAINED = ("train", "restval")


def splits(folder: Path) -> list[Split]:
    """The splits that each dataset*.json names; where there are several files, with the file's name before."""
    files = sorted(folder.glob("dataset*.json"))
    found = []
    for file in files:
        parts: dict[str, list[tuple[int, Any]]] = {}
        for number, entry in enumerate(_entries(file)):
            name = entry.get("split") if isinstance(entry, dict) else None
            parts.setdefault("train" if name in TRAINED or not isinstance(name, str) else name, []).append((number, entry))
        before = f"{file.stem}-" if len(files) > 1 else ""
        found += [Split(f"{before}{name}", file, partial(_rows, file, part)) for name, part in parts.items()]
    return found


def _entries(file: Path) -> list[Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file.name} is not JSON ({error}). Fetch it again.") from error
    entries = read.get("images") if isinstance(read, dict) else None
    if not isinstance(entries, list):
        raise InputError(f'{file.name} has no list "images". Karpathy\'s json is {{"images": [{{"filename", "split", "sentences"}}]}}.')
    return entries


def _rows(file: Path, part: list[tuple[int, Any]], reading: Reading) -> Iterator[Row]:
    if reading.kind != "caption":
        raise InputError(f"{file.name} holds captions, which are of the task caption, not {reading.kind}. Give --task caption.")
    for number, entry in part:
        where = f"{file.name}, image {number + 1}"
        yield where, partial(_item, file, where, entry)


def _item(file: Path, where: str, entry: Any) -> Item:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise InputError(f'{where}: "filename" is missing. {SKIP}')
    if not isinstance(entry.get("split"), str):
        raise InputError(f'{where}: "split" of {name} is missing. {SKIP}')
    inside = Path(str(entry.get("filepath") or ""), name)
    places = [file.parent / "images" / inside, file.parent / inside, file.parent / "images" / name, file.parent / name]
    image = next((place for place in places if place.is_file()), None)
    if image is None:
        raise InputError(f"{where}: the image {inside} is neither in images/ nor beside {file.name}. {SKIP}")
    given = entry.get("sentences")
    raw = [each.get("raw") for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    captions = tuple(text.strip() for text in raw if isinstance(text, str) and text.strip())
    if not captions:
        raise InputError(f'{where}: {name} has no caption: "sentences" is a list of {{"raw": "..."}}. {SKIP}')
    return Item(name, where, image, CAPTION_PROMPT, captions)
