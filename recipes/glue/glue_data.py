"""Four tasks of GLUE as they lie in a folder: readers, and official figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from exitwise.bench.metrics import accuracy, f1, matthews
from exitwise.bench.texts import Encoded as Encoded
from exitwise.bench.texts import Example
from exitwise.errors import InputError

COLA = "acceptability_corpus/cola_public/raw"


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
