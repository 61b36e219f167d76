"""What the model is asked: a folder of rows and images becomes items with a prompt, references and a way to judge the answers.

FOLDER holds a `*.jsonl` and `images/`. Rows of the task `caption`: {"image", "captions"}. Rows of the task `answer`: {"image", "sentence",
"label"} (true or false), {"image", "hypothesis", "label", "caption"?} (see `entailment`) or {"image", "question", "answer", "candidates"?};
without candidates, all answers of the file are candidates.
A row may name its "group": items of a group are judged together too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from exitwise.errors import InputError

from . import entailment

Kind = Literal["caption", "answer"]
KINDS: tuple[Kind, ...] = ("caption", "answer")
CAPTION_PROMPT = "what does the image describe?"
TRUTH = ("true", "false")
METRICS: dict[str, str] = {"caption": "CIDEr", "answer": "accuracy"}


@dataclass(frozen=True)
class Item:
    """One thing to ask. `where` is file:line; `references`: the captions, or the one right answer; `candidates`: none for captions."""

    name: str
    where: str
    image: Path
    prompt: str
    references: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    group: str = ""
    credit: str = ""

    def picture(self) -> Image.Image:
        """The decoded image; a InputError that names the item where that fails."""
        try:
            with Image.open(self.image) as opened:
                opened.load()
                return opened.copy()
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{self.where}: the image {self.image.name} cannot be read ({error}). {_SKIP}") from error


@dataclass(frozen=True)
class Fault:
    """A row that could not be used: where it stands and what is wrong with it."""

    where: str
    what: str


@dataclass(frozen=True)
class Task:
    """The items of one split, and the rows that were left out because they are bad."""

    kind: Kind
    file: Path
    items: tuple[Item, ...]
    faults: tuple[Fault, ...] = field(default=())

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    @property
    def split(self) -> str:
        return self.file.stem

    def first(self, count: int | None) -> Task:
        """The same task with its first `count` items; None keeps all."""
        return self if count is None else Task(self.kind, self.file, self.items[:count], self.faults)


_SKIP = "Mend the row, or leave bad rows out with --skip-bad."


def load(
    kind: str,
    folder: str | Path,
    split: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    caption_in_prompt: bool = False,
) -> Task:
    """The task in FOLDER/SPLIT.jsonl. The first bad row raises; with `skip_bad` bad rows are kept as `faults` instead.

    caption_in_prompt: a hypothesis is asked together with the row's caption, as MuE's scripts do; a row without one is bad then.
    """
    if kind not in KINDS:
        raise InputError(f"task {kind!r} is not known. Tasks: {', '.join(KINDS)}.")
    file = _file_of(Path(folder), split)
    items: list[Item] = []
    faults: list[Fault] = []
    rows = list(_rows(file))
    answers = _all_answers(rows) if kind == "answer" else ()
    for where, row in rows:
        if limit is not None and len(items) >= limit:
            break
        try:
            item = _item(kind, file, where, row, answers, caption_in_prompt)
            item.picture()
        except InputError as error:
            if not skip_bad:
                raise
            faults.append(Fault(where, str(error).removeprefix(f"{where}: ").removesuffix(f" {_SKIP}")))
        else:
            items.append(item)
    if not items:
        raise InputError(f"{file} has no usable row ({len(faults)} are bad). {_form(kind)}")
    return Task(KINDS[KINDS.index(kind)], file, tuple(items), tuple(faults))


def sample(kind: str, split: str) -> Task:
    """The embedded sample: split `calibration` (to choose on) or `test` (to judge on)."""
    return load(kind, sample_folder(kind), split)


def sample_folder(kind: str) -> Path:
    """Where the embedded sample of a task lies."""
    return Path(__file__).parent / "sample" / kind


def splits(folder: str | Path) -> list[str]:
    """The names of the `*.jsonl` files in a folder, without the ending, sorted."""
    return sorted(file.stem for file in Path(folder).glob("*.jsonl"))


def _file_of(folder: Path, split: str | None) -> Path:
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist. Give a folder that holds a *.jsonl and images/.")
    found = splits(folder)
    if not found:
        raise InputError(f"no *.jsonl lies in {folder}. Give a folder that holds a *.jsonl and images/.")
    if split is None and len(found) == 1:
        split = found[0]
    if split is None and "test" in found:
        split = "test"
    if split is None:
        raise InputError(f"{folder} holds several files: {', '.join(found)}. Choose one with --split NAME.")
    if split not in found:
        raise InputError(f"{folder} has no {split}.jsonl. It holds: {', '.join(found)}.")
    return folder / f"{split}.jsonl"


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, parsed row or the error) of every line that is not blank."""
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                yield f"{file.name}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                yield f"{file.name}:{number}", error


def _form(kind: str) -> str:
    if kind == "caption":
        return 'A row is {"image": "a.jpg", "captions": ["...", "..."]}.'
    asked = '{"image": "a.png", "question": "...", "answer": "...", "candidates": [...]}'
    return f'A row is {{"image": "a.png", "sentence": "...", "label": "true"}} or {asked}.'


def _all_answers(rows: list[tuple[str, Any]]) -> tuple[str, ...]:
    given = {row["answer"].strip().lower() for _, row in rows if isinstance(row, dict) and isinstance(row.get("answer"), str)}
    return tuple(sorted(given - {""}))


def _item(kind: str, file: Path, where: str, row: Any, answers: tuple[str, ...], caption_in_prompt: bool) -> Item:
    if isinstance(row, json.JSONDecodeError):
        raise InputError(f"{where}: this line is not JSON ({row.msg}). {_SKIP}")
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row is a JSON object, this is {type(row).__name__}. {_form(kind)}")
    name = _text(row, "image", where, kind)
    image = file.parent / "images" / name
    if not image.is_file():
        raise InputError(f"{where}: the image {name} is not in {image.parent.name}/ beside {file.name}. {_SKIP}")
    if kind == "caption":
        return Item(name, where, image, CAPTION_PROMPT, _captions(row, where), credit=_credit(row))
    if "hypothesis" in row or caption_in_prompt:
        prompt, answer, candidates = _entailment(row, where, caption_in_prompt)
    else:
        prompt, answer, candidates = _question(row, where, answers)
    if answer not in candidates:
        raise InputError(f"{where}: the answer {answer!r} for {name} is not among the candidates {', '.join(candidates)}. {_SKIP}")
    asked = "statement" if "sentence" in row else "entailment" if "hypothesis" in row else "question"
    group = _text(row, "group", where, kind) if "group" in row else asked
    return Item(name, where, image, prompt, (answer,), candidates, group, _credit(row))


def _credit(row: dict[str, Any]) -> str:
    """Licence and source of the image, where the row names them."""
    return ", ".join(str(row[key]) for key in ("licence", "source") if row.get(key))


def _captions(row: dict[str, Any], where: str) -> tuple[str, ...]:
    captions = row.get("captions")
    usable = [text.strip() for text in captions if isinstance(text, str) and text.strip()] if isinstance(captions, list) else []
    if not usable:
        raise InputError(f"{where}: {row['image']} has no caption. {_form('caption')} {_SKIP}")
    return tuple(usable)


def _question(row: dict[str, Any], where: str, answers: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    """(prompt, right answer, candidates), in the words that the shipped model was trained on."""
    if "sentence" in row:
        sentence = _text(row, "sentence", where, "answer").lower().rstrip(". ")
        label = row.get("label")
        return f"{sentence} true or false?", (str(label).lower() if isinstance(label, (bool, str)) else repr(label)), TRUTH
    question = _text(row, "question", where, "answer").lower()
    answer = _text(row, "answer", where, "answer").lower()
    given = row.get("candidates", list(answers))
    if not isinstance(given, list) or not given or not all(isinstance(text, str) and text.strip() for text in given):
        raise InputError(f"{where}: candidates of {row['image']} must be a list of answers, got {given!r}. {_SKIP}")
    return question, answer, tuple(dict.fromkeys(text.strip().lower() for text in given))


def _entailment(row: dict[str, Any], where: str, caption_in_prompt: bool) -> tuple[str, str, tuple[str, ...]]:
    """(prompt, right answer, candidates) of a hypothesis."""
    hypothesis = _text(row, "hypothesis", where, "answer")
    caption = _text(row, "caption", where, "answer") if caption_in_prompt else None
    label = _text(row, "label", where, "answer")
    try:
        right = entailment.answer(label)
    except InputError as problem:
        raise InputError(f"{where}: {problem} for {row['image']}. {_SKIP}") from None
    return entailment.prompt(hypothesis, caption), right, tuple(entailment.ANSWERS.values())


def _text(row: dict[str, Any], key: str, where: str, kind: str) -> str:
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return value.strip()
    state = "is missing" if key not in row else "is empty" if isinstance(value, str) else f"is {value!r}, not text"
    whose = f" for {row['image']}" if key != "image" else ""
    raise InputError(f"{where}: {key!r} {state}{whose}. {_form(kind)} {_SKIP}")
