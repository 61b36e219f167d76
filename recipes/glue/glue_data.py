"""Four tasks of GLUE as they lie in a folder: readers, official figures, and batches of rows of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from exitwise.bench.metrics import accuracy, f1, matthews
from exitwise.errors import InputError

COLA = "acceptability_corpus/cola_public/raw"


@dataclass(frozen=True)
class Example:
    """One row: a sentence, or a pair, and its class."""

    first: str
    second: str | None
    label: int


@dataclass(frozen=True)
class Task:
    """files: split -> paths below the folder. columns: where first, second (None: no pair) and label stand. score: the official figure."""

    files: Mapping[str, tuple[str, ...]]
    columns: tuple[int, int | None, int]
    score: Callable[[Sequence[int], Sequence[int]], float]
    labels: Mapping[str, int]
    header: bool = True
    longest: int = 128


BINARY = {"0": 0, "1": 1}
TASKS = {
    "sst2": Task(
        {"train": ("glue_data/SST-2/train.tsv",), "dev": ("glue_data/SST-2/dev.tsv",)}, (0, None, 1), accuracy, BINARY, longest=64
    ),
    "mrpc": Task({"train": ("glue_data/MRPC/train.tsv",), "dev": ("glue_data/MRPC/dev.tsv",)}, (3, 4, 0), f1, BINARY),
    "rte": Task(
        {"train": ("glue_data/RTE/train.tsv",), "dev": ("glue_data/RTE/dev.tsv",)},
        (1, 2, 3),
        accuracy,
        {"entailment": 0, "not_entailment": 1},
        longest=192,
    ),
    "cola": Task(
        {"train": (f"{COLA}/in_domain_train.tsv",), "dev": (f"{COLA}/in_domain_dev.tsv", f"{COLA}/out_of_domain_dev.tsv")},
        (3, None, 1),
        matthews,
        BINARY,
        header=False,
        longest=64,
    ),
}


def read(name: str, folder: Path, split: str) -> list[Example]:
    """The rows of a split. Raises InputError that names the file and the line of a row that cannot be used."""
    task, found = TASKS[name], []
    for part in task.files[split]:
        path = folder / part
        if not path.exists():
            raise InputError(f"{path} is not there. Give the folder that holds glue_data/ and acceptability_corpus/.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()[1 if task.header else 0 :]
        for number, line in enumerate(lines, 2 if task.header else 1):
            cells = line.split("\t")  # quotes are words here, so that this is not the csv of a spreadsheet
            if len(cells) <= max(c for c in task.columns if c is not None) or cells[task.columns[2]] not in task.labels:
                raise InputError(f"{path}, line {number}: {line[:60]!r} has no text or no label of {', '.join(task.labels)}.")
            first, second, label = task.columns
            found.append(Example(cells[first].strip(), None if second is None else cells[second].strip(), task.labels[cells[label]]))
    return found


def parted(rows: Sequence[Example], held: int, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """(rows to learn from, `held` rows to calibrate on), drawn once; no text is on both sides."""
    order = list(range(len(rows)))
    Random(seed).shuffle(order)
    kept = [rows[i] for i in order[:held]]
    texts = {(row.first, row.second) for row in kept}
    return [row for i in order[held:] if ((row := rows[i]).first, row.second) not in texts], kept


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
