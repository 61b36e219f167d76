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


class Within:
    """Finds texts that stand whole, word by word, within some of these; one that is there twice counts once."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(dict.fromkeys(f" {text.strip()} " for text in texts))
        self.having: dict[str, list[int]] = {}
        for place, text in enumerate(self.texts):
            for word in set(text.split()):
                self.having.setdefault(word, []).append(place)

    def times(self, text: str) -> int:
        """In how many of them the text stands."""
        rarest = min((self.having.get(word, []) for word in text.split()), key=len, default=[])
        return sum(f" {text.strip()} " in self.texts[place] for place in rarest)


def parted(rows: Sequence[Example], held: int, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """(rows to learn from, `held` rows to calibrate on), drawn once.

    SST-2's training rows are sentences and their phrases, its dev rows are sentences: so the held rows are whole texts, which stand in no
    other row, and of the rows that stand within a held one only those are learnt from that stand within another whole text too.
    """
    order = list(range(len(rows)))
    Random(seed).shuffle(order)
    everywhere = Within([row.first for row in rows])
    whole = [place for place in order if everywhere.times(rows[place].first) == 1]
    kept, out = whole[:held], set(whole[:held])
    texts = {rows[place].first for place in kept}
    inside, others = Within(list(texts)), Within([rows[place].first for place in whole[held:] if rows[place].first not in texts])
    learn = [rows[place] for place in order if place not in out]
    if learn[0].second is None:
        learn = [row for row in learn if not inside.times(row.first) or others.times(row.first)]
    else:
        pairs = {(rows[place].first, rows[place].second) for place in kept}
        learn = [row for row in learn if (row.first, row.second) not in pairs]
    return learn, [rows[place] for place in kept]
