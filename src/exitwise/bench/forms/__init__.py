"""The forms of data that are read: one file each, which finds its splits in a folder and turns their rows into items.

A form is a module with `splits(folder) -> list[Split]`. Rows come one at a time, so that a file larger than the memory can be read.
"""

from __future__ import annotations

from pathlib import Path

from ..items import Split
from . import karpathy, rows, tsv

FORMS = (rows, tsv, karpathy)
HOLDS = "images/ and a *.jsonl (rows of ours, or SNLI-VE's), a *.tsv of OFA's, or a dataset*.json of Karpathy's"


def splits(folder: Path) -> list[Split]:
    """Every split of every form that lies in the folder, by name."""
    return sorted((split for form in FORMS for split in form.splits(folder)), key=lambda split: split.name)
