"""The forms that OFA's users own become the same items, images stay on disk, and whatever is broken is named by file and line."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from exitwise.bench import tasks
from exitwise.bench.forms.entailment import spelled
from exitwise.bench.pictures import Embedded
from exitwise.errors import InputError


def jpeg(colour: str = "red", side: int = 16) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "JPEG")
    return out.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


RED, BLUE = text(jpeg("red")), text(jpeg("blue"))
CAPTION = ("17", "391895", "a man rides&&a rider on a road", "man&&road", RED)
HOLDS = ("5.jpg#1r1n", "5", BLUE, "A man-made  Lake.", "A lake/pond, #at <person> noon", "entailment")
NOT = ("5.jpg#1r1c", "5", BLUE, "It is night.", "A lake", "contradiction")


def tsv(folder: Path, name: str, *rows: tuple[str, ...]) -> Path:
    (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def colour(item: tasks.Item) -> str:
    red, _, blue = item.picture().convert("RGB").getpixel((8, 8))  # type: ignore[misc]
    return "red" if red > blue else "blue"


def test_a_captions_tsv_is_read_and_its_images_stay_in_it(tmp_path: Path) -> None:
    tsv(tmp_path, "caption_val.tsv", CAPTION, ("18", "2", "ein Hündchen", "", BLUE), ("19", "2", "a dog", "", BLUE))
    task = tasks.load("caption", tmp_path)
    assert task.split == "caption_val" and task.metric == "CIDEr"
    first, second, third = task.items
    assert first.references == ("a man rides", "a rider on a road") and first.name == "391895" and first.where == "caption_val.tsv:1"
    assert second.references == ("ein Hündchen",) and first.prompt == "what does the image describe?"
    assert [colour(item) for item in task.items] == ["red", "blue", "blue"]
    assert isinstance(second.image, Embedded) and second.image == third.image != first.image  # the same image is decoded once


def test_both_alphabets_of_base64_are_read(tmp_path: Path) -> None:
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "JPEG")
    safe = base64.urlsafe_b64encode(noise.getvalue()).decode()
    assert "-" in safe or "_" in safe
    (item,) = tasks.load("caption", tsv(tmp_path, "a.tsv", (*CAPTION[:4], safe))).items
    assert item.picture().size == (64, 64)


def test_entailment_is_asked_in_ofas_words(tmp_path: Path) -> None:
    tsv(tmp_path, "snli_ve_dev.tsv", HOLDS, NOT)
    plain, other = tasks.load("answer", tmp_path).items
    assert plain.prompt == 'does the image describe " a man made lake. "?'
    assert plain.references == ("yes",) and other.references == ("no",)
    assert plain.candidates == ("no", "yes", "maybe") and plain.group == "entailment"
    told = tasks.load("answer", tmp_path, add_caption=True).items[0]
    assert told.prompt == 'can image and text1 " a lake pond, #at person noon " imply text2 " a man made lake. "?'


def test_spelling_cuts_at_eighty_words() -> None:
    assert spelled("?!Hello,  World") == "hello, world"
    assert spelled(" ".join(["w"] * 90)).count("w") == 80


def test_a_large_tsv_is_not_held_in_memory(tmp_path: Path) -> None:
    """60 MB of images: less than a tenth of it is ever held, while reading and after."""
    with (tmp_path / "big.tsv").open("w") as file:
        for number in range(40):
            data = jpeg() + bytes([number]) * 1_100_000 + b"\xff\xd9"
            file.write("\t".join((*CAPTION[:4], text(data))) + "\n")
    tracemalloc.start()
    items = tasks.load("caption", tmp_path).items
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(items) == 40 and len({item.image for item in items}) == 40 and items[39].picture().size == (16, 16)
    assert held < 1e5 and peak < 6e6 + 3e6


BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "broken base64": ("caption", (*CAPTION[:4], RED[:40] + "*" + RED[41:]), "broken base64"),
    "letters outside base64": ("caption", (*CAPTION[:4], RED[:40] + "****" + RED[40:]), "broken base64"),
    "cut base64": ("caption", (*CAPTION[:4], RED[:-3]), "broken base64"),
    "a cut image": ("caption", (*CAPTION[:4], text(jpeg(side=64)[:-20])), "cannot be read"),
    "no image": ("caption", (*CAPTION[:4], text(b"no image at all")), "cannot be read"),
    "an empty image": ("caption", (*CAPTION[:4], ""), "column of the image is empty"),
    "missing columns": ("caption", CAPTION[:4], "4 columns. A caption's row has 5: id, image id, caption, labels of objects, image"),
    "no caption": ("caption", (*CAPTION[:2], " && ", "", RED), "391895 has no caption"),
    "a caption's row": ("answer", CAPTION, "5 columns. An entailment's row has 6: id, image id, image, hypothesis, caption, label"),
    "a label outside": ("answer", (*HOLDS[:5], "perhaps"), "the label 'perhaps' for 5 is not among contradiction, entailment, neutral"),
    "no hypothesis": ("answer", (*HOLDS[:3], " ", *HOLDS[4:]), "the hypothesis for 5 is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, case: str) -> None:
    kind, row, said = BAD[case]
    tsv(tmp_path, "all.tsv", CAPTION if kind == "caption" else HOLDS, row)
    with pytest.raises(InputError) as caught:
        tasks.load(kind, tmp_path)
    assert str(caught.value).startswith("all.tsv:2: ") and said in str(caught.value) and "--skip-bad" in str(caught.value)
    task = tasks.load(kind, tmp_path, skip_bad=True)
    assert len(task.items) == 1 and [fault.where for fault in task.faults] == ["all.tsv:2"]


def test_a_caption_that_is_to_be_added_must_be_there(tmp_path: Path) -> None:
    tsv(tmp_path, "ve.tsv", (*HOLDS[:4], "", "neutral"))
    assert tasks.load("answer", tmp_path).items[0].references == ("maybe",)
    with pytest.raises(InputError, match="ve.tsv:1: the caption for 5 is empty"):
        tasks.load("answer", tmp_path, add_caption=True)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/a.jsonl").write_text(json.dumps({"image": "a.jpg", "sentence": "x", "label": "true"}))
    with pytest.raises(InputError, match="no caption to add"):
        tasks.load("answer", tmp_path / "ours", add_caption=True)


PAIR = {"Flickr30K_ID": "77", "sentence1": "Two dogs.", "sentence2": "Two animals.", "gold_label": "entailment", "pairID": "77.jpg#0r1e"}


@pytest.mark.parametrize("folder", ["images", "flickr30k-images", "flickr30k_images", "."])
def test_snli_ve_finds_its_photos(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "77.jpg").write_bytes(jpeg())
    by_caption = {key: value for key, value in PAIR.items() if key != "Flickr30K_ID"} | {"captionID": "77.jpg#3"}
    (tmp_path / "snli_ve_dev.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(by_caption))
    task = tasks.load("answer", tmp_path, "dev", add_caption=True)
    assert task.split == "snli_ve_dev" and len(task.items) == 2
    assert task.items[0].prompt == 'can image and text1 " two dogs. " imply text2 " two animals. "?'
    assert {item.image for item in task.items} == {tmp_path / folder / "77.jpg"} and task.items[0].references == ("yes",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gold_label": "-"}, "the label '-' for 77.jpg is not among"),
        ({"Flickr30K_ID": "78"}, "the image 78.jpg is in none of images"),
        ({"Flickr30K_ID": None}, "neither Flickr30K_ID nor captionID"),
        ({"sentence2": None}, "'sentence2' is missing"),
    ],
)
def test_a_bad_row_of_snli_ve_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "77.jpg").write_bytes(jpeg())
    (tmp_path / "dev.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR | change))
    with pytest.raises(InputError, match="^dev.jsonl:2: ") as caught:
        tasks.load("answer", tmp_path)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="Give --task answer"):
        tasks.load("caption", tmp_path)


def entry(name: str, split: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "filepath": "val2014", "split": split, "sentences": [{"raw": f"A {name}."}, {"raw": " "}], **more}


def karpathy(folder: Path, *entries: Any) -> Path:
    (folder / "images/val2014").mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / "images/val2014" / name).write_bytes(jpeg())
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": list(entries)}))
    return folder


def test_karpathys_splits_lie_in_one_file(tmp_path: Path) -> None:
    karpathy(tmp_path, entry("a.jpg", "train"), entry("b.jpg", "restval"), entry("c.jpg", "test"))
    assert tasks.splits(tmp_path) == ["test", "train"]
    assert [item.name for item in tasks.load("caption", tmp_path, "train").items] == ["a.jpg", "b.jpg"]
    task = tasks.load("caption", tmp_path)
    assert task.split == "test" and task.items[0].references == ("A c.jpg.",)
    with pytest.raises(InputError, match="Give --task caption"):
        tasks.load("answer", tmp_path)
    with pytest.raises(InputError, match="Did you mean 'train'"):
        tasks.load("caption", tmp_path, "trian")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (entry("gone.jpg", "test"), "the image val2014/gone.jpg is neither"),
        (entry("a.jpg", "test", sentences=[]), "a.jpg has no caption"),
        ({"split": "test"}, '"filename" is missing'),
    ],
)
def test_a_bad_entry_of_karpathys_is_named(tmp_path: Path, bad: Any, said: str) -> None:
    karpathy(tmp_path, entry("a.jpg", "test"), bad)
    with pytest.raises(InputError, match=r"^dataset_coco.json, image 2: ") as caught:
        tasks.load("caption", tmp_path)
    assert said in str(caught.value)
    assert len(tasks.load("caption", tmp_path, skip_bad=True).items) == 1


def test_a_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_coco.json").write_text('{"images": [')
    with pytest.raises(InputError, match="dataset_coco.json is not JSON"):
        tasks.load("caption", tmp_path)
    (tmp_path / "dataset_coco.json").write_text('{"annotations": []}')
    with pytest.raises(InputError, match='no list "images"'):
        tasks.load("caption", tmp_path)


def test_a_file_is_its_own_split_and_names_its_neighbours(tmp_path: Path) -> None:
    tsv(tmp_path, "snli_ve_train.tsv", HOLDS)
    tsv(tmp_path, "snli_ve_dev.tsv", NOT)
    assert tasks.load("answer", tmp_path / "snli_ve_train.tsv").split == "snli_ve_train"
    assert tasks.load("answer", tmp_path / "snli_ve_train.tsv", "dev").split == "snli_ve_dev"
    assert tasks.load("answer", tmp_path, usual="train").split == "snli_ve_train"
    with pytest.raises(InputError, match="several splits"):
        tasks.load("answer", tmp_path)
    tsv(tmp_path, "other_dev.tsv", NOT)
    with pytest.raises(InputError, match="has 2 splits called dev"):
        tasks.load("answer", tmp_path, "dev")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="none of the forms"):
        tasks.load("answer", tmp_path / "notes.txt")
