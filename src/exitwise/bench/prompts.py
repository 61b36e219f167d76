"""Prompts for language models: the files of the usual benchmarks, rows of ours and plain texts become prompts with their references.

Told by each row's keys: {"turns": [...], "category"} of Spec-Bench, MT-Bench and EAGLE; {"question", "answer"} of GSM8K; {"task_id",
"prompt", "canonical_solution"} of HumanEval; {"prompt", "reference"?, "group"?} of ours. In a .txt, each line that is not blank is a prompt.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exitwise.errors import InputError

from .forms.lines import json_lines, opened
from .items import SKIP, Fault
from .texts import last_number

HOLDS = "*.jsonl, *.jsonl.gz or *.txt"
FORM = 'A row is {"prompt": "..."}, {"question": "...", "answer": "..."} or {"turns": ["..."], "category": "..."}.'


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to ask. where: file:line; references: answers that are right, or that others gave, if any; group: the file's category.

    later: what a user says in the further turns of a chat, after the model's answers. solved: whether the references hold a solution that ends
    in a number, by which an answer can be judged.
    """

    where: str
    text: str
    references: tuple[str, ...] = ()
    group: str = ""
    later: tuple[str, ...] = ()
    solved: bool = False

    @property
    def number(self) -> str | None:
        """The last number of the first reference: what a solution of arithmetic comes to."""
        return last_number(self.references[0]) if self.solved else None


@dataclass(frozen=True)
class Prompts:
    """The prompts of one file, and the rows that were left out because they are bad."""

    file: Path
    prompts: tuple[Prompt, ...]
    faults: tuple[Fault, ...] = field(default=())


def read(source: str | Path, limit: int | None = None, skip_bad: bool = False, group: str | None = None) -> Prompts:
    """The prompts in a file, or in the only such file of a folder. The first bad row raises; with `skip_bad` they are kept as `faults`.

    limit: the first so many only. group: those of this category only. Raises InputError, with file and line, also where nothing is left.
    """
    file = _file(Path(source))
    prompts: list[Prompt] = []
    faults: list[Fault] = []
    known: dict[str, None] = {}
    for where, make in _texts(file) if file.suffix == ".txt" else _rows(file):
        if limit is not None and len(prompts) >= limit:
            break
        try:
            prompt = make()
        except InputError as error:
            if not skip_bad:
                raise
            faults.append(Fault(where, str(error).removeprefix(f"{where}: ").removesuffix(f" {SKIP}")))
            continue
        known[prompt.group] = None
        if group is None or prompt.group == group:
            prompts.append(prompt)
    if not prompts and group is not None and any(known):
        raise InputError(f"{file} has no prompt of the group {group!r}. It has: {', '.join(sorted(filter(None, known)))}.")
    if not prompts:
        first = f" The first: {faults[0].where}: {faults[0].what}" if faults else ""
        raise InputError(f"{file} has no usable prompt ({len(faults)} rows are bad).{first}")
    return Prompts(file, tuple(prompts), tuple(faults))


def _file(source: Path) -> Path:
    if source.is_file():
        if source.name.endswith((".jsonl", ".jsonl.gz", ".txt")):
            return source
        raise InputError(f"{source} is none of {HOLDS}. Give such a file.")
    if not source.is_dir():
        raise InputError(f"{source} does not exist. Give a file ({HOLDS}), or a folder that holds one.")
    found = sorted(file for ending in HOLDS.replace(",", "").replace("or ", "").split() for file in source.glob(ending))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:8]) or "none"
        raise InputError(f"The folder {source} should hold one file of prompts ({HOLDS}); it holds: {names}. Name the file.")
    return found[0]


def _texts(file: Path) -> Iterator[tuple[str, Callable[[], Prompt]]]:
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{file.name}:{number}"
                yield where, lambda where=where, text=line.strip(): Prompt(where, text)  # type: ignore[misc]


def _rows(file: Path) -> Iterator[tuple[str, Callable[[], Prompt]]]:
    try:
        for where, row in json_lines(file):
            yield where, lambda where=where, row=row: _prompt(where, row)  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError) as problem:
        raise InputError(f"{file} cannot be unpacked ({problem}). Download it again.") from problem


def _prompt(where: str, row: Any) -> Prompt:
    if isinstance(row, json.JSONDecodeError):
        raise InputError(f"{where}: this line is not JSON ({row.msg}). {SKIP}")
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row is a JSON object, this is {type(row).__name__}. {FORM} {SKIP}")
    group = str(row.get("group") or row.get("category") or "")
    if "turns" in row:
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise InputError(f"{where}: 'turns' must be a list of one text or more, got {turns!r}. {SKIP}")
        texts = [_text(turn, "turns", where) for turn in turns]
        references = _references(row)
        return Prompt(where, texts[0], references, group, tuple(texts[1:]), bool(references) and "####" in references[0])
    if "question" in row:
        answer = _text(row.get("answer"), "answer", where) if "answer" in row else None
        return Prompt(where, _text(row["question"], "question", where), () if answer is None else (answer,), group,
                      solved=answer is not None and last_number(answer) is not None)  # fmt: skip
    if "prompt" not in row:
        raise InputError(f"{where}: the row has {', '.join(map(repr, row)) or 'nothing'}, but no prompt. {FORM} {SKIP}")
    text = row["prompt"] if "canonical_solution" in row else _text(row["prompt"], "prompt", where)
    references = (row["canonical_solution"],) if "canonical_solution" in row else _references(row)
    return Prompt(where, text, references, group, solved=bool(references) and "####" in references[0])


def _references(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row gives as right, a text or a list of them."""
    given = row.get("references", row.get("reference"))
    texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    state = "is empty" if isinstance(value, str) else f"is {value!r}, not text"
    raise InputError(f"{where}: {key!r} {state}. {FORM} {SKIP}")
