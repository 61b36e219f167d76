"""The shape that every form of data is read into: items with an image, a prompt, references and a way to judge; and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from . import pictures

Kind = Literal["caption", "answer"]
KINDS: tuple[Kind, ...] = ("caption", "answer")
CAPTION_PROMPT = "what does the image describe?"
METRICS: dict[str, str] = {"caption": "CIDEr", "answer": "accuracy"}
SKIP = "Mend the row, or leave bad rows out with --skip-bad."


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask. `where` is file:line; `references`: the captions, or the one right answer; `candidates`: none for captions."""

    name: str
    where: str
    image: pictures.Source
    prompt: str
    references: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    group: str = ""
    credit: str = ""

    def picture(self) -> Image.Image:
        """The decoded image, read when asked for; an InputError that names the item where that fails."""
        return pictures.decode(self.image, self.where, SKIP)


@dataclass(frozen=True)
class Fault:
    """A row that could not be used: where it stands and what is wrong with it."""

    where: str
    what: str


@dataclass(frozen=True)
class Task:
    """The items of one split, and the rows that were left out because they are bad. `name`: of the split, where it is not the file's."""

    kind: Kind
    file: Path
    items: tuple[Item, ...]
    faults: tuple[Fault, ...] = field(default=())
    name: str = ""

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    @property
    def split(self) -> str:
        return self.name or self.file.stem

    def first(self, count: int | None) -> Task:
        """The same task with its first `count` items; None keeps all."""
        return self if count is None else replace(self, items=self.items[:count])


@dataclass(frozen=True)
class Reading:
    """How rows are read. `add_caption`: an entailment is asked with its premise, the image's caption, in the prompt."""

    kind: Kind
    add_caption: bool = False


Row = tuple[str, Callable[[], Item]]  # where it stands, and what makes its item or raises an InputError that begins with it


@dataclass(frozen=True)
class Split:
    """One split that a form found: its name, its file, and its reader."""

    name: str
    file: Path
    rows: Callable[[Reading], Iterator[Row]]
