"""The forms of data that are read: one file each, which finds its splits in a folder and turns their rows into items.

A form is a module with `splits(folder) -> list[Split]`. Rows come one at a time, so that a file larger than the memory can be read.
"""

from __future__ import annotations

from pathlib import Path

from exitwise.errors import InputError

from ..items import Split
from . import hub, karpathy, rows, tsv

FORMS = (rows, tsv, karpathy)
HOLDS = "images/ and a *.jsonl (rows of ours, or SNLI-VE's), a *.tsv of OFA's, or a dataset*.json of Karpathy's"


def named(source: str | Path, name: str | None = None) -> tuple[list[Split], str | None]:
    """(splits of a folder, of a file, or of a data set on the hub; `name`, or what the source itself names).

    A file's own splits are found; those beside it too, where one of them is asked for. Raises InputError where there is no such source.
    """
    if hub.is_hub(source):
        address = hub.parsed(source)
        return hub.splits(address), name or address.split
    path = Path(source)
    folder = path.parent if path.is_file() else path
    if not folder.is_dir():
        raise InputError(f"the folder {path} does not exist. Give one that holds {HOLDS}; or {hub.WAY}.")
    found = splits(folder)
    return [split for split in found if split.file == path] if path.is_file() and name is None else found, name


def title(source: str | Path) -> str:
    """How a record names a source: the folder's own name, or what it is called on the hub."""
    return str(hub.parsed(source)) if hub.is_hub(source) else Path(source).name


def splits(folder: Path) -> list[Split]:
    """Every split of every form that lies in the folder, by name."""
    return sorted((split for form in FORMS for split in form.splits(folder)), key=lambda split: split.name)
