"""Prompts of the usual benchmarks and of users' own files, and how what a model writes is judged."""

from __future__ import annotations

import doctest
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from exitwise.bench import texts
from exitwise.bench.prompts import Prompt, read
from exitwise.bench.texts import agreement, last_number, number_accuracy
from exitwise.errors import InputError

REAL = Path(".data/llm-eval")
SPEC = {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Now shorter."]}
EAGLE = {"question_id": 0, "category": "math", "turns": ["How old?"], "reference": ["7 + 11 = <<7+11=18>>18\n#### 1,018"]}
GSM = {"question": "How many eggs?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"}
HUMAN = {"task_id": "test/0", "prompt": "def one():\n", "canonical_solution": "    return 1", "test": "", "entry_point": "one"}
PLAIN = {"prompt": " Tell me. ", "reference": "Told.", "group": "talk"}


def jsonl(file: Path, *rows: Any) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_every_form_becomes_prompts(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "all.jsonl", SPEC, EAGLE, "", GSM, HUMAN, PLAIN)).prompts
    assert found == (
        Prompt("all.jsonl:1", "Write a post.", (), "writing", ("Now shorter.",)),
        Prompt("all.jsonl:2", "How old?", ("7 + 11 = <<7+11=18>>18\n#### 1,018",), "math", (), True),
        Prompt("all.jsonl:4", "How many eggs?", (GSM["answer"],), "", (), True),
        Prompt("all.jsonl:5", "def one():\n", ("    return 1",)),  # code keeps its indentation and its last line break
        Prompt("all.jsonl:6", "Tell me.", ("Told.",), "talk"),
    )
    assert [prompt.number for prompt in found] == [None, "1018", "13", None, None]


def test_a_packed_file_and_a_plain_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "code.jsonl.gz").write_bytes(gzip.compress(json.dumps(HUMAN).encode()))
    assert read(tmp_path).prompts[0].text == HUMAN["prompt"]  # the only file of its folder
    (tmp_path / "code.jsonl.gz").unlink()
    (tmp_path / "lines.txt").write_text("  Once upon\n\nIn a hole\n")
    assert [(p.where, p.text) for p in read(tmp_path).prompts] == [("lines.txt:1", "Once upon"), ("lines.txt:3", "In a hole")]


def test_limits_and_groups(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", SPEC, EAGLE, PLAIN, SPEC)
    assert [p.where for p in read(file, limit=2).prompts] == ["a.jsonl:1", "a.jsonl:2"]
    assert [p.where for p in read(file, limit=2, group="writing").prompts] == ["a.jsonl:1", "a.jsonl:4"]
    with pytest.raises(InputError, match="no prompt of the group 'poems'. It has: math, talk, writing"):
        read(file, group="poems")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{not json", "this line is not JSON"),
        ("[1]", "a row is a JSON object, this is list"),
        ({"image": "a.png"}, "the row has 'image', but no prompt"),
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": 7}, "'prompt' is 7, not text"),
        ({"turns": []}, "'turns' must be a list of one text or more"),
        ({"turns": [None]}, "'turns' is None, not text"),
        ({"question": "Why?", "answer": ""}, "'answer' is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Any, what: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", GSM, row, PLAIN)
    with pytest.raises(InputError, match=rf"a.jsonl:2: .*{what.replace('[', '.')}.*--skip-bad"):
        read(file)
    found = read(file, skip_bad=True)
    assert len(found.prompts) == 2 and found.faults[0].where == "a.jsonl:2" and what in found.faults[0].what
    with pytest.raises(InputError, match=r"no usable prompt \(1 rows are bad\).*a.jsonl:1"):
        read(jsonl(tmp_path / "b.jsonl", row), skip_bad=True)


def test_what_is_no_file_of_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    for source, what in ((tmp_path / "a.csv", "is none of"), (tmp_path / "gone.jsonl", "does not exist"), (tmp_path, "it holds: none")):
        with pytest.raises(InputError, match=what):
            read(source)
    jsonl(tmp_path / "a.jsonl", GSM)
    jsonl(tmp_path / "b.jsonl", GSM)
    with pytest.raises(InputError, match="it holds: a.jsonl, b.jsonl. Name the file"):
        read(tmp_path)
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="c.jsonl.gz cannot be unpacked"):
        read(tmp_path / "c.jsonl.gz")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the benchmarks' own files are not in {REAL}")
@pytest.mark.parametrize(
    ("file", "count", "numbers"),
    [
        ("spec-bench/question.jsonl", 480, 80),
        ("eagle/eagle/data/gsm8k/question.jsonl", 80, 80),
        ("gsm8k/grade_school_math/data/test.jsonl", 1319, 1319),
        ("human-eval/data/HumanEval.jsonl.gz", 164, 0),
        ("wikitext-2/test.txt", 2891, 0),
    ],
)
def test_the_benchmarks_own_files_are_read_whole(file: str, count: int, numbers: int) -> None:
    found = read(REAL / file)
    assert len(found.prompts) == count and not found.faults
    assert sum(prompt.number is not None for prompt in found.prompts) == numbers
    if "gsm8k/grade" in file:
        assert all(prompt.number == last_number(prompt.references[0].split("####")[1]) for prompt in found.prompts)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234,567", "1234567"), ("$18.00.", "18"), ("x = -7", "-7"), ("10-4=6, 2", "2"), ("10-4", "4"), ("a .5 share", "0.5"),
        ("007", "7"), ("-0", "0"), ("9 (3)", "3"), ("no", None), ("1,23", "23"), ("It is 42!", "42"), ("2024-01-05", "5"), ("v2", "2"),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_accuracy_by_numbers() -> None:
    assert number_accuracy(["so 13", "13 eggs, then 14", "", "13.0"], ["13"] * 4) == 50.0


def test_agreement_by_hand() -> None:
    found = agreement([[1, 2, 3, 9], [4, 5], [6], []], [[1, 2, 3, 4, 5], [4, 5], [7, 6], []])
    assert (found.same, found.prefix, found.places) == (0.5, (3 / 5 + 1 + 0 + 1) / 4, (3 / 5 + 1 + 0 + 1) / 4)
    assert agreement([[1, 9, 3]], [[1, 2, 3]]).places == pytest.approx(2 / 3) and agreement([[1, 2]], [[1]]).same == 0
    assert agreement([[1]], [[]]).prefix == 0
    with pytest.raises(InputError, match="1 answers were given for 2 items"):
        agreement([[1]], [[1], [2]])


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(texts).failed == 0
