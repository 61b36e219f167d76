"""Rows become items, and every bad row is named by file, line and image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from exitwise.bench import tasks
from exitwise.errors import InputError

GOOD_CAPTION = {"image": "a.png", "captions": ["A dog.", "The dog runs"]}
GOOD_ANSWER = {"image": "a.png", "sentence": "There is a Blue item.", "label": "true"}
ASKED = {"image": "a.png", "question": "q", "answer": "red"}


def folder(tmp_path: Path, *rows: Any, name: str = "test.jsonl") -> Path:
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images/a.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_sentence_becomes_the_prompt_that_the_model_was_trained_on(tmp_path: Path) -> None:
    (item,) = tasks.load("answer", folder(tmp_path, GOOD_ANSWER)).items
    assert item.prompt == "there is a blue item true or false?"
    assert item.references == ("true",) and item.candidates == ("true", "false")


def test_questions_without_candidates_choose_among_the_answers_of_the_file(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "question": "What colour?", "answer": answer} for answer in ("Red", "blue", "red")]
    items = tasks.load("answer", folder(tmp_path, *rows)).items
    assert [item.references for item in items] == [("red",), ("blue",), ("red",)]
    assert {item.candidates for item in items} == {("blue", "red")}


def test_captions_keep_their_words(tmp_path: Path) -> None:
    (item,) = tasks.load("caption", folder(tmp_path, GOOD_CAPTION)).items
    assert item.references == ("A dog.", "The dog runs") and item.prompt == tasks.CAPTION_PROMPT


BAD: dict[str, tuple[str, Any, str]] = {
    "missing image": ("caption", GOOD_CAPTION | {"image": "gone.jpg"}, "gone.jpg is not in images/"),
    "no caption": ("caption", GOOD_CAPTION | {"captions": ["  "]}, "a.png has no caption"),
    "captions of another kind": ("caption", GOOD_CAPTION | {"captions": "text"}, "a.png has no caption"),
    "not JSON": ("caption", '{"image": ', "not JSON"),
    "not an object": ("caption", "[1]", "a row is a JSON object"),
    "no image": ("caption", {"captions": ["a"]}, "'image' is missing"),
    "empty sentence": ("answer", GOOD_ANSWER | {"sentence": " "}, "'sentence' is empty for a.png"),
    "label outside": ("answer", GOOD_ANSWER | {"label": "perhaps"}, "'perhaps' for a.png is not among the candidates true, false"),
    "label missing": ("answer", {"image": "a.png", "sentence": "x"}, "not among the candidates"),
    "answer outside": (
        "answer",
        {"image": "a.png", "question": "q", "answer": "red", "candidates": ["blue"]},
        "'red' for a.png is not among",
    ),
    "candidates of another kind": ("answer", ASKED | {"candidates": []}, "must be a list"),
    "truncated image": ("caption", GOOD_CAPTION | {"image": "cut.png"}, "cut.png cannot be read"),
    "no image at all": ("caption", GOOD_CAPTION | {"image": "text.png"}, "text.png cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_line_and_item_or_counted(tmp_path: Path, case: str) -> None:
    kind, row, said = BAD[case]
    good = GOOD_CAPTION if kind == "caption" else GOOD_ANSWER
    place = folder(tmp_path, good, row)
    Image.effect_noise((64, 64), 50).save(place / "images/whole.png")
    (place / "images/cut.png").write_bytes((place / "images/whole.png").read_bytes()[:600])
    (place / "images/text.png").write_text("not an image")
    with pytest.raises(InputError) as caught:
        tasks.load(kind, place)
    assert str(caught.value).startswith("test.jsonl:2: ") and said in str(caught.value)
    task = tasks.load(kind, place, skip_bad=True)
    assert len(task.items) == 1 and [fault.where for fault in task.faults] == ["test.jsonl:2"]
    assert said in task.faults[0].what


def test_a_folder_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable row"):
        tasks.load("caption", folder(tmp_path, GOOD_CAPTION | {"image": "gone.jpg"}), skip_bad=True)


def test_the_split_is_chosen_and_never_guessed(tmp_path: Path) -> None:
    place = folder(tmp_path, GOOD_CAPTION, name="dev.jsonl")
    assert tasks.load("caption", place).split == "dev"
    folder(tmp_path, GOOD_CAPTION, name="train.jsonl")
    with pytest.raises(InputError, match="several splits: dev, train"):
        tasks.load("caption", place)
    with pytest.raises(InputError, match="no splits called test"):
        tasks.load("caption", place, "test")
    with pytest.raises(InputError, match="does not exist"):
        tasks.load("caption", place / "nowhere")
    with pytest.raises(InputError, match="task 'captoin' is not known"):
        tasks.load("captoin", place)


@pytest.mark.parametrize(("kind", "sizes"), [("caption", (40, 71)), ("answer", (659, 1199))])
def test_the_embedded_sample_is_whole_and_its_splits_share_no_image(kind: str, sizes: tuple[int, int]) -> None:
    chosen_on, judged_on = tasks.sample(kind, "calibration"), tasks.sample(kind, "test")
    assert (len(chosen_on.items), len(judged_on.items)) == sizes
    assert not {item.name for item in chosen_on.items} & {item.name for item in judged_on.items}
    for file in (chosen_on.file, judged_on.file):
        assert all(json.loads(line)["licence"] for line in file.read_text().splitlines())
