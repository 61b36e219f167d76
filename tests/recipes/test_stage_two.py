"""The proof of stage two: what is judged was never learnt from, a skip has its reason, and the figures are these by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "mue"))
stage_two = pytest.importorskip("stage_two")
study = pytest.importorskip("study")

from exitwise.bench.tasks import load  # noqa: E402


def test_the_judged_photos_are_those_that_no_training_saw(tmp_path: Path) -> None:
    splits = json.loads(stage_two.SPLITS.read_text())["flickr8k"]
    seen, held = splits["validation"][0], splits["test"][:3]
    data = tmp_path / "flickr8k"
    (data / "images").mkdir(parents=True)
    rows = {"train": ["a.jpg", "b.jpg", "c.jpg"], "dev": [seen, *held]}
    for name, images in rows.items():
        for image in images:
            Image.new("RGB", (8, 8), "red").save(data / "images" / image)
        (data / f"{name}.jsonl").write_text("\n".join(json.dumps({"image": image, "captions": ["a dog"]}) for image in images))
    stage_two.write_karpathy(data, tmp_path / "work", stage_two.Size(trained=2, judged=2))
    learnt, judged = (load("caption", tmp_path / "work", split) for split in ("train", "test"))
    assert {item.name for item in learnt.items} < set(rows["train"]) and len(learnt.items) == 2
    assert [item.name for item in judged.items] == held[:2]


def test_the_gain_by_hand() -> None:
    found = {0: {"one": [10.0, 20.0], "two": [16.0, 22.0]}, 1: {"one": [12.0, 20.0], "two": [12.0, 28.0]}}
    told = stage_two.result(found)
    assert told["gain"] == pytest.approx(4.0) and told["photos"] == 2  # photo one gains (6 + 0) / 2, photo two (2 + 8) / 2
    assert told["seeds"]["0"] == {"one": 15.0, "two": 19.0, "gain": 4.0} and told["seeds"]["1"]["gain"] == 4.0
    assert 3.0 <= told["interval"][0] <= 4.0 <= told["interval"][1] <= 5.0


def test_both_stages_are_the_packages_recipes() -> None:
    one, two = (stage_two.chosen_recipe(stage) for stage in ("one", "two"))
    assert not one.reward and one.weights == "uniform" and one.smoothing == 0.1
    assert two.reward and two.ce_weight > 0 and two.reward_weights == "last" and two.samples == 5


def test_without_the_data_it_is_skipped_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stage_two.py", "--data", str(tmp_path), "--work", str(tmp_path / "work")])
    assert stage_two.main() == 0
    assert "skipped" in capsys.readouterr().err and not (tmp_path / "work").exists()


def test_a_figure_goes_beside_the_others_with_its_interval(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"z": 1}')
    study.summarise(tmp_path, "a/b", 2.0, (1.5, 2.5))
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a/b": 2.0, "a/b_low": 1.5, "a/b_high": 2.5, "z": 1}
