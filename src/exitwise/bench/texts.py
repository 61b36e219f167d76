"""Texts with labels: rows of a user's jsonl or tsv, and rows as tokens in batches.

A *.jsonl has one row a line: {"text": "...", "label": "..."}, or {"text", "pair", "label"} for two texts. A *.tsv has a header that names
the same columns; `sentence` stands for `text`, and `sentence1`, `sentence2` for the two of a pair. A label is a name or a number of the
model's `id2label`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from exitwise.errors import InputError

NAMES = {"text": ("text", "sentence", "sentence1"), "pair": ("pair", "sentence2"), "label": ("label",)}
FORM = 'A row of a *.jsonl is {"text": "...", "label": "..."}; a *.tsv has a header with text and label.'


@dataclass(frozen=True)
class Example:
    """One row: a sentence, or a pair, and its class."""

    first: str
    second: str | None
    label: int


class Encoded:
    """Rows as tokens. longest: tokens a row may have; longer ones are cut."""

    def __init__(self, rows: Sequence[Example], tokenizer: Any, longest: int) -> None:
        if not rows:
            raise InputError("There are no rows. Give a split with some.")
        pair = None if rows[0].second is None else [str(row.second) for row in rows]
        found = tokenizer([row.first for row in rows], pair, truncation=True, max_length=longest)
        self.columns = {name: found[name] for name in ("input_ids", "token_type_ids", "attention_mask") if name in found}
        self.labels = [row.label for row in rows]
        self.pad = int(tokenizer.pad_token_id or 0)

    def __len__(self) -> int:
        return len(self.labels)

    def length(self, row: int) -> int:
        """Tokens of a row."""
        return len(self.columns["input_ids"][row])

    def batch(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """(what the model takes, padded on the right; labels)."""
        longest = max(self.length(row) for row in rows)
        inputs = {}
        for name, column in self.columns.items():
            fill = self.pad if name == "input_ids" else 0
            inputs[name] = torch.tensor([[*column[row], *[fill] * (longest - len(column[row]))] for row in rows])
        return inputs, torch.tensor([self.labels[row] for row in rows])

    def drawn(self, step: int, size: int, seed: int = 0) -> list[int]:
        """The rows of a training step, of like length: the same for the same step, every row once an epoch."""
        per_epoch = max(1, len(self) // size)
        epoch, place = divmod(step, per_epoch)
        order = list(range(len(self)))
        Random(f"{seed}-{epoch}").shuffle(order)
        pool, within = divmod(place, 50)  # of fifty batches at a time, rows are sorted by length and the batches shuffled
        chunk = sorted(order[pool * 50 * size : (pool + 1) * 50 * size], key=self.length)
        batches = [chunk[i : i + size] for i in range(0, len(chunk), size)]
        Random(f"{seed}-{epoch}-{pool}").shuffle(batches)
        return batches[within % len(batches)]

    def in_turn(self, size: int) -> Iterator[list[int]]:
        """All rows, the shortest first, in batches."""
        order = sorted(range(len(self)), key=self.length)
        yield from (order[i : i + size] for i in range(0, len(order), size))


def split_file(source: Path, split: str | None, usual: Sequence[str]) -> Path:
    """The file of a split: SOURCE itself, or the one in the folder that is called so, or is the first of the usual names that is there.

    Raises InputError that names what the folder holds.
    """
    if source.is_file() and split is None:
        return source
    folder = source.parent if source.is_file() else source
    if not folder.is_dir():
        raise InputError(f"{source} does not exist. Give a folder with *.jsonl or *.tsv files, or one of them.")
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in (".jsonl", ".tsv")}
    for name in [split] if split is not None else usual:
        if name in files:
            return files[name]
    wanted = split if split is not None else " or ".join(usual)
    raise InputError(f"{folder} has no split {wanted}. It holds: {', '.join(files) or 'no *.jsonl and no *.tsv'}. {FORM}")


def read(file: Path, names: Mapping[int, str], limit: int | None = None) -> list[Example]:
    """The rows of a file; names: class -> name, of the model's head. Raises InputError with file and line of a row that cannot be used."""
    classes = {str(name): number for number, name in names.items()}
    rows: list[Example] = []
    for where, row in _jsonl(file) if file.suffix == ".jsonl" else _tsv(file):
        if limit is not None and len(rows) >= limit:
            break
        given = {key: next((row[name] for name in known if name in row), None) for key, known in NAMES.items()}
        if not isinstance(given["text"], str) or not given["text"].strip() or given["label"] is None:
            raise InputError(f"{where}: no text or no label. {FORM}")
        rows.append(Example(given["text"], given["pair"], _class(given["label"], classes, where)))
    if not rows:
        raise InputError(f"{file} holds no rows. {FORM}")
    if len({row.second is None for row in rows}) > 1:
        raise InputError(f"{file} has rows with a pair and rows without. Give one kind.")
    return rows


def _class(label: Any, classes: Mapping[str, int], where: str) -> int:
    """The class that a label names, by its name or its number."""
    said = str(int(label) if isinstance(label, bool | float) and float(label).is_integer() else label).strip()
    if said in classes:
        return classes[said]
    if said.isdigit() and int(said) in classes.values():
        return int(said)
    allowed = ", ".join(f"{name} ({number})" for name, number in list(classes.items())[:8])
    raise InputError(f"{where}: the label {label!r} does not fit the model's head. Allowed: {allowed}.")


def _jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise InputError(f"{file.name}:{number}: this line is not JSON ({problem.msg}). {FORM}") from None
        if not isinstance(row, dict):
            raise InputError(f"{file.name}:{number}: a row is a JSON object. {FORM}")
        yield f"{file.name}:{number}", row


def _tsv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    header = lines[0].split("\t") if lines else []
    for number, line in enumerate(lines[1:], 2):  # quotes are words here, so that this is not the csv of a spreadsheet
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise InputError(f"{file.name}:{number}: {len(cells)} columns, but the header names {len(header)}. {FORM}")
        yield f"{file.name}:{number}", dict(zip(header, cells, strict=True))
