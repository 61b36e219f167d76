"""Rows of ours: a `*.jsonl` with one row a line, and `images/` beside it; a file of SNLI-VE is told by its rows and handed on.

Rows of the task `caption`: {"image", "captions"}. Rows of the task `answer`: {"image", "sentence", "label"} (true or false) or
{"image", "question", "answer", "candidates"?}; without candidates, all answers of the file are candidates; or {"image", "hypothesis",
"label", "caption"?} (see `entailment`). A row may name its "group": items of a group are judged together too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from exitwise.errors import InputError

from ..items import CAPTION_PROMPT, SKIP, Item, Reading, Row, Split
from . import snli_ve
from .entailment import entailment
from .lines import json_lines

TRUTH = ("true", "false")


def splits(folder: Path) -> list[Split]:
    """One split for each *.jsonl."""
    return [Split(file.stem, file, partial(_rows, file)) for file in folder.glob("*.jsonl")]


def _rows(file: Path, reading: Reading) -> Iterator[Row]:
    answers = _all_answers(json_lines(file)) if reading.kind == "answer" else ()
    for where, row in json_lines(file):
        if snli_ve.is_row(row):
            yield where, partial(snli_ve.item, file, where, row, reading)
        else:
            yield where, partial(_item, reading, file, where, row, answers)


def _form(kind: str) -> str:
    if kind == "caption":
        return 'A row is {"image": "a.jpg", "captions": ["...", "..."]}.'
    asked = '{"image": "a.png", "question": "...", "answer": "...", "candidates": [...]}'
    return f'A row is {{"image": "a.png", "sentence": "...", "label": "true"}} or {asked}.'


def _all_answers(rows: Iterator[tuple[str, Any]]) -> tuple[str, ...]:
    given = {row["answer"].strip().lower() for _, row in rows if isinstance(row, dict) and isinstance(row.get("answer"), str)}
    return tuple(sorted(given - {""}))


def _item(reading: Reading, file: Path, where: str, row: Any, answers: tuple[str, ...]) -> Item:
    kind = reading.kind
    told = isinstance(row, dict) and "hypothesis" in row
    if reading.add_caption and not told:
        raise InputError(f"{where}: a row of this form has no caption to add. Leave --add-caption out; it is for entailment.")
    if isinstance(row, json.JSONDecodeError):
        raise InputError(f"{where}: this line is not JSON ({row.msg}). {SKIP}")
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row is a JSON object, this is {type(row).__name__}. {_form(kind)}")
    name = _text(row, "image", where, kind)
    image = file.parent / "images" / name
    if not image.is_file():
        raise InputError(f"{where}: the image {name} is not in {image.parent.name}/ beside {file.name}. {SKIP}")
    if kind == "caption":
        return Item(name, where, image, CAPTION_PROMPT, _captions(row, where), credit=_credit(row))
    if told:
        caption = _text(row, "caption", where, kind) if reading.add_caption else ""
        hypothesis, label = (_text(row, key, where, kind) for key in ("hypothesis", "label"))
        asked = entailment(name, where, image, hypothesis, caption, label, reading)
        return replace(asked, group=_text(row, "group", where, kind) if "group" in row else asked.group, credit=_credit(row))
    prompt, answer, candidates = _question(row, where, answers)
    if answer not in candidates:
        raise InputError(f"{where}: the answer {answer!r} for {name} is not among the candidates {', '.join(candidates)}. {SKIP}")
    group = _text(row, "group", where, kind) if "group" in row else "statement" if "sentence" in row else "question"
    return Item(name, where, image, prompt, (answer,), candidates, group, _credit(row))


def _credit(row: dict[str, Any]) -> str:
    """Licence and source of the image, where the row names them."""
    return ", ".join(str(row[key]) for key in ("licence", "source") if row.get(key))


def _captions(row: dict[str, Any], where: str) -> tuple[str, ...]:
    captions = row.get("captions")
    usable = [text.strip() for text in captions if isinstance(text, str) and text.strip()] if isinstance(captions, list) else []
    if not usable:
        raise InputError(f"{where}: {row['image']} has no caption. {_form('caption')} {SKIP}")
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
        raise InputError(f"{where}: candidates of {row['image']} must be a list of answers, got {given!r}. {SKIP}")
    return question, answer, tuple(dict.fromkeys(text.strip().lower() for text in given))


def _text(row: dict[str, Any], key: str, where: str, kind: str) -> str:
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return value.strip()
    state = "is missing" if key not in row else "is empty" if isinstance(value, str) else f"is {value!r}, not text"
    whose = f" for {row['image']}" if key != "image" else ""
    raise InputError(f"{where}: {key!r} {state}{whose}. {_form(kind)} {SKIP}")
