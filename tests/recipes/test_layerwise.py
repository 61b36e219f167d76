"""The ablation of the layer-wise loss: figures by hand, the arms differ in one thing, and a skip has its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "mue"))
layerwise = pytest.importorskip("layerwise")
import stage_two  # noqa: E402


def test_the_gain_and_its_interval_by_hand() -> None:
    """Differences 2, 4 and 6 at depth 1: mean 4, deviation 2, half an interval 4.303 * 2 / sqrt(3) = 4.969."""
    found = {seed: {"layer-wise": [10.0 + gain, 30.0], "last-layer": [10.0, 30.0]} for seed, gain in ((0, 2), (1, 4), (2, 6))}
    first, last = layerwise.result(found)["depths"]
    assert first["gain"] == pytest.approx(4) and first["seeds"] == {"0": 2.0, "1": 4.0, "2": 6.0}
    assert first["interval"] == pytest.approx([4 - 4.9687, 4 + 4.9687], abs=1e-3)  # the table's quantile has three decimals
    assert last["gain"] == 0 and last["interval"] == [0.0, 0.0]
    assert layerwise.result({0: found[0]})["depths"][0]["interval"] is None


def test_both_arms_begin_alike_and_see_the_same_batches(tmp_path: Path) -> None:
    """A study in small: only the weights of the layers' losses differ, and the accuracies are those of a plain loop."""
    held = [str(name) for name in json.loads(stage_two.SPLITS.read_text())["flickr8k"]["test"][:2]]
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for split, names in (("train", ["a.jpg", "b.jpg"]), ("dev", held)):
        for name in names:
            Image.new("RGB", (32, 32), "red").save(data / "images" / name)
        rows = [{"image": name, "captions": ["a red dog runs .", "a dog"]} for name in names]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = layerwise.Study(data, tmp_path / "work", layerwise.Amount(2, 2, 1, 2))
    models = [study.model(3) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values()))
    one, two = (study.course(study.lessons, arm, 3) for arm in layerwise.ARMS)
    assert torch.equal(one.batch(1).labels, two.batch(1).labels) and (one.recipe.weights, two.recipe.weights) == ("uniform", "last")
    model, course = models[0].eval(), study.course(study.held, "last-layer", 3)
    lesson = course.lesson([course.texts.index((place, course.learnt("a red dog runs ."))) for place in (0, 1)])
    with torch.no_grad():
        logits = model(**lesson.inputs, use_cache=False).logits
    counts = lesson.labels != -100
    wanted = 100 * (logits.argmax(-1) == lesson.labels)[counts].double().mean()
    found = layerwise.accuracies(model, course)
    assert len(found) == 6 and found[-1] == pytest.approx(float(wanted))


def test_without_the_data_it_is_skipped_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["layerwise.py", "--data", str(tmp_path), "--work", str(tmp_path / "work")])
    assert layerwise.main() == 0
    assert "skipped" in capsys.readouterr().err and not (tmp_path / "work").exists()
