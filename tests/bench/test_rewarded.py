"""Stage two on two pictures: what is judged, what the loss is made of, and that CIDEr rises with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from exitwise.bench.metrics import cider
from exitwise.bench.rewarded import Judge, Rewarded
from exitwise.bench.tasks import Item, Task, load
from exitwise.errors import InputError
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer
from exitwise.train import Settings, train
from exitwise.train.recipe import Recipe

COLOURS = ("red", "blue", "green", "white")
School = tuple[Task, OFAForConditionalGeneration, OFAProcessor]


@pytest.fixture
def school(tmp_path: Path) -> School:
    (tmp_path / "images").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / f"{colour}.png")
    rows = [{"image": f"{c}.png", "captions": [f"a {c} picture of nothing", f"one {c} picture"]} for c in COLOURS]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = ["what does the image describe?", *(text for row in rows for text in row["captions"])]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts * 5, 330)
    model = OFAForConditionalGeneration(OFAConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0", decomposed=True, dropout=0.0,
    ))  # fmt: skip
    return load("caption", tmp_path), model, OFAProcessor.for_config(tokenizer, model.config)


def test_the_judge_is_the_metric_and_misses_an_end(school: School) -> None:
    task = school[0]
    judge = Judge(task)
    said = "a red picture"
    wanted = [[f"{text} endofcaption" for text in item.references] for item in task.items]
    texts = [f"{said} endofcaption", "x", "x", "x"]
    assert judge(said, True, 0) == pytest.approx(cider(texts, wanted).items[0] / 100)
    assert judge(said, False, 0) < judge(said, True, 0)


def test_rows_of_one_image_are_judged_by_all_its_captions(school: School) -> None:
    task = school[0]
    rows = [replace(item, references=(text,)) for item in task.items for text in item.references]
    judge, whole = Judge(Task("caption", task.file, tuple(rows))), Judge(task)
    for text in ("a red picture of nothing", "one red picture"):
        assert judge(text, True, 1) == judge(text, True, 0) == whole(text, True, 0) > 0


def test_the_loss_is_made_of_its_parts(school: School) -> None:
    task, model, processor = school
    recipe = Recipe(rows=2, reward=True, samples=3, longest=6, ce_weight=0.25, reward_weights="last")
    with_both, alone = Rewarded(task, processor, recipe), Rewarded(task, processor, recipe.changed({"ce_weight": 0}))
    lesson = with_both.batch(0)
    assert len(lesson.labels) == 2 and len(set(lesson.places)) == 2
    torch.manual_seed(3)
    both = with_both.objective(model, lesson)
    torch.manual_seed(3)
    one = alone.objective(model, lesson)
    assert float((both["loss"] - one["loss"]).detach()) == pytest.approx(0.25 * float(both["cross_entropy"].detach()), abs=1e-5)
    assert "cross_entropy" not in one and float(both["reward"]) == float(one["reward"]) >= 0


@pytest.mark.parametrize("search", ["sample", "beam"])
def test_the_gradient_is_that_of_rows_encoded_one_by_one(school: School, search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is encoded once for all its texts; by hand, once for each."""
    from exitwise.train import leave_one_out
    from exitwise.train.reward import taught, write

    task, model, processor = school
    course = Rewarded(task, processor, Recipe(rows=2, reward=True, samples=3, longest=6, search=search))
    worth = torch.tensor([[1.0, 2.0, 6.0], [0.0, 3.0, 0.0]])  # an untaught model earns nothing
    monkeypatch.setattr(course, "worth", lambda ids, places: worth)
    lesson = course.batch(1)
    torch.manual_seed(3)
    model.train()
    course.objective(model, lesson)["loss"].backward()
    mine = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    torch.manual_seed(3)
    told = {name: value for name, value in lesson.inputs.items() if name != "decoder_input_ids"}
    ids = write(model, told, 3, 6, search)
    advantage = leave_one_out(worth).flatten()
    given, labels = taught(ids, 0, 2, 1)
    repeated = {name: value.repeat_interleave(3, 0) for name, value in told.items()}
    logp = model(**repeated, decoder_input_ids=given, use_cache=False).logits.log_softmax(-1)
    asked = labels != -100
    gold = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    (-(gold * advantage[:, None])[asked].mean()).backward()
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            assert torch.allclose(mine[name], weight.grad, atol=1e-5), name  # fp32, another order of sums
    assert any(grad.abs().max() > 1e-4 for grad in mine.values())


def test_the_reward_raises_cider(school: School, tmp_path: Path) -> None:
    from exitwise.bench.course import Course

    task, model, processor = school
    kept = dict(zip(task.items, torch.randn(4, 1, 1, 320), strict=True))  # in place of a stem's features

    def look(items: Sequence[Item]) -> dict[str, torch.Tensor]:
        return {"image_features": torch.stack([kept[item] for item in items])}

    first = Course(task, processor, Recipe(rows=4, lr=4e-3, smoothing=0.0), look=look)
    train(model, first.batch, first.objective, Settings(folder=tmp_path / "one", steps=60, lr=4e-3, warmup=5))
    recipe = Recipe(rows=4, reward=True, samples=5, longest=8, ce_weight=0.05, reduction="sum")
    second = Rewarded(task, processor, recipe, look=look)
    with torch.no_grad():
        before = second.validate(model.eval())
    assert before["loss"] == -before["cider"]
    train(model, second.batch, second.objective, Settings(folder=tmp_path / "two", steps=50, lr=2e-3, warmup=5))
    with torch.no_grad():
        after = second.validate(model.eval())
    assert after["cider"] > before["cider"] + 10


def test_answers_have_no_reward(school: School, tmp_path: Path) -> None:
    task, _, processor = school
    with pytest.raises(InputError, match="A reward is for captions"):
        Rewarded(Task("answer", task.file, task.items), processor)
