"""Data sets that the package `datasets` reads or wrote become the same items as files do; what cannot be had or read is named."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from exitwise.bench import pictures, tasks
from exitwise.bench.forms import hub
from exitwise.cli import app
from exitwise.errors import InputError, UnknownName

datasets = pytest.importorskip("datasets", reason="the extra 'data' is not installed")

LABELS = ["entailment", "neutral", "contradiction"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test waits for a network, and what `datasets` prepares lies with the test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    hub._loaded.cache_clear()


def jpeg(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "JPEG")
    return out.getvalue()


def picture(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def table(columns: dict[str, list[Any]], **types: Any) -> Any:
    made = datasets.Dataset.from_dict(columns)
    for name, kind in types.items():
        made = made.cast_column(name, kind)
    return made


def saved(folder: Path, columns: dict[str, list[Any]], **types: Any) -> str:
    """Two splits that `datasets` saved itself."""
    made = table(columns, **types)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(folder / "kept")
    return f"hub:{folder / 'kept'}"


RED, BLUE = picture(jpeg("red")), picture(jpeg("blue"))
CAPTIONED = {"image": [RED, BLUE, RED], "caption": [["a red one", "it is red"], ["a blue one"], ["red"]]}
ENTAILED = {"photo": [RED, BLUE], "premise": ["A lake.", "A sea."], "hypothesis": ["It is red.", "It is red."], "label": [0, 2]}


def colour(item: tasks.Item) -> str:
    red, _, blue = item.picture().convert("RGB").getpixel((8, 8))  # type: ignore[misc]
    return "red" if red > blue else "blue"


def test_captions_are_read_and_images_stay_in_the_table(tmp_path: Path) -> None:
    source = saved(tmp_path, CAPTIONED, image=datasets.Image())
    assert tasks.splits(source) == ["test", "train"]
    task = tasks.load("caption", f"{source}@train")
    assert task.split == "train" and [colour(item) for item in task.items] == ["red", "blue", "red"]
    assert task.items[0].references == ("a red one", "it is red") and task.items[0].where.endswith("@train, row 1")
    first, second, third = (item.image for item in task.items)
    assert isinstance(first, pictures.Stored) and first == third != second  # equal images are one place: the stem runs once
    assert pictures.stamp(first) != pictures.stamp(second)
    hub._loaded.cache_clear()
    assert pictures.stamp(tasks.load("caption", source, "train").items[0].image) == pictures.stamp(first)  # also in another process
    assert tasks.load("caption", source).split == "test" and tasks.load("caption", source, usual="train").split == "train"
    assert tasks.load("caption", f"{source}@train", "test").split == "test"  # --split and --calibration go before the source's own


def test_entailment_with_named_classes(tmp_path: Path) -> None:
    """The image's column by its type, the numbers of the labels by the type's names, the premise only where it is asked for."""
    source = saved(tmp_path, ENTAILED, photo=datasets.Image(), label=datasets.ClassLabel(names=LABELS))
    plain = tasks.load("answer", source, "train").items
    assert [item.references for item in plain] == [("yes",), ("no",)]
    assert plain[0].prompt == 'does the image describe " it is red. "?' and plain[0].candidates == ("no", "yes", "maybe")
    told = tasks.load("answer", source, "train", add_caption=True).items[1]
    assert told.prompt == 'can image and text1 " a sea. " imply text2 " it is red. "?'


def test_numbers_are_named_by_the_user(tmp_path: Path) -> None:
    source = saved(tmp_path, ENTAILED, photo=datasets.Image())
    with pytest.raises(InputError, match="numbers without names.*labels=entailment/neutral"):
        tasks.load("answer", source, "train")
    named = tasks.load("answer", f"{source}@train,labels=entailment/neutral/contradiction")
    assert [item.references for item in named.items] == [("yes",), ("no",)]
    with pytest.raises(InputError, match="row 2: the label 2 is not among 0 entailment, 1 neutral"):
        tasks.load("answer", f"{source}@train,labels=entailment/neutral")


def test_questions_and_statements(tmp_path: Path) -> None:
    asked = {"image": [RED, BLUE], "question": ["Which colour?"] * 2, "answer": ["red", "Blue"]}
    items = tasks.load("answer", saved(tmp_path / "a", asked, image=datasets.Image()), "train").items
    assert items[1].references == ("blue",) and items[0].candidates == ("blue", "red") and items[0].group == "question"
    said = {"image": [RED, BLUE], "sentence": ["It is red."] * 2, "label": [True, False]}
    items = tasks.load("answer", saved(tmp_path / "b", said, image=datasets.Image()), "train").items
    assert [item.references for item in items] == [("true",), ("false",)] and items[0].prompt == "it is red true or false?"


def test_unusual_columns_are_named(tmp_path: Path) -> None:
    """Binary images and Karpathy's nested texts, under names that nobody knows."""
    odd = {"blob": [jpeg("red"), jpeg("blue")], "said": [[{"raw": "a red one"}], [{"raw": "a blue one"}]], "n": [1, 2]}
    source = saved(tmp_path, odd)
    with pytest.raises(InputError, match="no column that is an image nor captions.*It has: blob, said, n"):
        tasks.load("caption", source, "train")
    task = tasks.load("caption", f"{source}@train,image=blob,captions=said")
    assert [item.references for item in task.items] == [("a red one",), ("a blue one",)]
    assert [colour(item) for item in task.items] == ["red", "blue"]


def test_what_datasets_reads_by_itself(tmp_path: Path) -> None:
    """A folder of parquet files and a folder of images, through `load_dataset`."""
    (tmp_path / "flat").mkdir()
    table(CAPTIONED, image=datasets.Image()).to_parquet(str(tmp_path / "flat" / "test.parquet"))
    task = tasks.load("caption", f"hub:{tmp_path / 'flat'}")
    assert task.split == "test" and [colour(item) for item in task.items] == ["red", "blue", "red"]
    photos = tmp_path / "photos" / "train"
    photos.mkdir(parents=True)
    for name in ("red", "blue"):
        (photos / f"{name}.jpg").write_bytes(jpeg(name))
    rows = [{"file_name": f"{name}.jpg", "text": f"a {name} one"} for name in ("red", "blue")]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = tasks.load("caption", f"hub:{tmp_path / 'photos'}")
    assert {(colour(item), item.references[0]) for item in task.items} == {("red", "a red one"), ("blue", "a blue one")}
    assert all(isinstance(item.image, Path) for item in task.items)  # files stay files


BAD = {
    "a broken image": ({"image": [RED, picture(jpeg("red")[:-40])]}, {}, "cannot be read"),
    "no image": ({"image": [RED, None]}, {}, "the column 'image' has no image"),
    "no caption": ({"caption": [["a"], [" "]]}, {}, "has no caption"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_or_counted(tmp_path: Path, case: str) -> None:
    changed, _, said = BAD[case]
    source = saved(tmp_path, {"image": [RED, BLUE], "caption": [["a"], ["b"]], **changed}, image=datasets.Image())
    with pytest.raises(InputError) as caught:
        tasks.load("caption", source, "train")
    assert "@train, row 2: " in str(caught.value) and said in str(caught.value) and "--skip-bad" in str(caught.value)
    task = tasks.load("caption", source, "train", skip_bad=True)
    assert len(task.items) == 1 and task.faults[0].where.endswith("row 2")


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    source = saved(tmp_path, {**ENTAILED, "label": ["neutral", "-"]}, photo=datasets.Image())
    with pytest.raises(InputError, match="row 2: the label '-' .* is not among contradiction, entailment, neutral"):
        tasks.load("answer", source, "train")
    source = saved(tmp_path / "n", {**ENTAILED, "label": [0, -1]}, photo=datasets.Image(), label=datasets.ClassLabel(names=LABELS))
    with pytest.raises(InputError, match="row 2: the label -1 is not among 0 entailment"):  # SNLI's pairs without a verdict
        tasks.load("answer", source, "train")


def test_missing_columns_splits_and_images_are_told_apart(tmp_path: Path) -> None:
    source = saved(tmp_path, CAPTIONED, image=datasets.Image())
    for asked, said in (
        (f"{source}@train,captions=captoin", "no column 'captoin' .for captions.. Did you mean 'caption'"),
        (f"{source}@trian", "no splits called trian. Did you mean 'train'"),
        (f"{source}@train,image=caption", "the column 'caption' holds .*, no images"),
        (f"{source}@train,captions", "'captions' is not ROLE=COLUMN"),
        ("hub:@train", "the name is empty"),
    ):
        with pytest.raises(InputError, match=said):
            tasks.load("caption", asked)
    with pytest.raises(InputError, match="the task answer needs. It has: image, caption"):
        tasks.load("answer", f"{source}@train")
    with pytest.raises(UnknownName, match="Did you mean 'captions'"):
        tasks.load("caption", f"{source}@train,caption_s=caption")
    two = saved(tmp_path / "two", {"left": [RED], "right": [BLUE], "caption": ["a"]}, left=datasets.Image(), right=datasets.Image())
    with pytest.raises(InputError, match="several columns of images: left, right"):
        tasks.load("caption", two, "train")
    assert colour(tasks.load("caption", f"{two}@train,image=right").items[0]) == "blue"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'exitwise\[data\]'"):
        tasks.load("caption", "hub:someone/photos")


def test_a_name_that_cannot_be_had_says_so() -> None:
    """Offline, and a folder that is none: the same error, with what to look at."""
    for name in ("someone/no-such-photos", "./no/such/folder"):
        with pytest.raises(InputError, match="could not be had.*Check its name"):
            tasks.load("caption", f"hub:{name}")


def test_the_commands_take_it(place: Path, tmp_path: Path) -> None:
    """Trained on, and judged on, by name; and an error ends with 2 and one message."""
    rows = [json.loads(line) for line in (place / "caption" / "test.jsonl").read_text().splitlines()]
    columns = {
        "image": [picture((place / "caption" / "images" / row["image"]).read_bytes()) for row in rows],
        "captions": [row["captions"] for row in rows],
    }
    source = saved(tmp_path, columns, image=datasets.Image())

    def call(*args: Any) -> Any:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    done = call("train", place / "model", "--task", "caption", "--data", f"{source}@train", "--steps", 1, "--rows", 2, "--out",
                tmp_path / "mine", "--json")  # fmt: skip
    assert done.exit_code == 0 and json.loads(done.stdout)["items"] == len(rows), done.output
    done = call("bench", "--model", place / "model", "--task", "caption", "--data", f"{source}@train", "--calibration", "train",
                "--limit", 2, "--keep", 0.1, "--out", tmp_path / "runs", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["task"] | {"items": 2, "split": "train"} == json.loads(done.stdout)["task"]
    done = call("train", place / "model", "--task", "caption", "--data", "hub:no/such", "--steps", 1, "--out", tmp_path / "other")
    assert done.exit_code == 2 and "could not be had" in done.output and "Traceback" not in done.output
    assert not (tmp_path / "other").exists()
