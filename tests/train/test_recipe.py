"""Recipes load, say what the paper and the scripts say, and refuse what is not theirs, with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exitwise.errors import KnobError, UnknownName
from exitwise.train import recipe
from exitwise.train.recipe import Recipe

NAMED = [
    "mue-coco-caption",
    "mue-coco-caption-stage2",
    "mue-snli-ve",
    "released-coco-caption",
    "released-coco-caption-stage2",
    "released-snli-ve",
]


def test_the_papers_and_the_scripts_recipes_are_there() -> None:
    assert recipe.names() == NAMED
    assert all(recipe.load(name).about and recipe.load(name).task for name in NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_the_files_are_toml(name: str) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    file = recipe.FOLDER / f"{name}.toml"
    assert recipe.parse(file) == tomllib.loads(file.read_text())


# What was read: the paper's appendix A, the scripts, OFA's script for stage two.
READ: dict[str, dict[str, Any]] = {
    "mue-snli-ve": {"lr": 3e-5, "batch": 64, "epochs": 5, "weight_decay": 0.01, "decomposed": True, "reduction": "sum"},
    "released-snli-ve": {"lr": 5e-5, "batch": 64, "epochs": 5, "smoothing": 0, "drop_path": 0.1, "dropout": 0.1, "add_caption": True},
    "mue-coco-caption": {"lr": 3e-5, "batch": 64, "epochs": 5},
    "released-coco-caption": {
        "lr": 1e-5, "batch": 32, "epochs": 5, "smoothing": 0.1, "drop_worst": 0.2, "drop_worst_after": 6000, "betas": (0.9, 0.999),
        "clip": 1.0, "schedule": "linear", "warmup_share": 0.06, "target_words": 20, "freeze_embeddings": True,
    },
    "mue-coco-caption-stage2": {"lr": 1e-5, "batch": 64, "epochs": 3, "dropout": 0, "reward": True, "samples": 5, "decomposed": True},
    "released-coco-caption-stage2": {"decomposed": False, "ce_weight": 0, "reward_weights": "last"},
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_recipe_says_what_was_read(name: str) -> None:
    found = recipe.load(name)
    assert {key: getattr(found, key) for key in READ[name]} == READ[name]


def test_updates_by_hand() -> None:
    """SNLI-VE's 529,527 rows, 64 at a time, five times: 41,370 updates; one device takes 16 times 4 rows for one, four devices 4 times."""
    found = recipe.load("mue-snli-ve")
    assert found.updates(529_527) == found.updates(529_527, 4) == 41_370
    assert found.accumulate() == 16 and found.accumulate(4) == 4
    assert Recipe(rows=5).accumulate(3) == 1 and Recipe().updates(100) is None
    with pytest.raises(KnobError, match="batch of 64 items cannot be made of 4 rows on each of 3 devices.*batch=12"):
        found.accumulate(3)
    with pytest.raises(KnobError, match="batch=100"):
        found.changed({"rows": 100}).accumulate()


def test_values_are_checked_and_a_slip_is_met() -> None:
    assert Recipe().changed({"lr": 1, "betas": [0.9, 0.99]}).betas == (0.9, 0.99)
    assert Recipe(smoothing=0.1).changed({"smoothing": None}).smoothing is None
    for change, said in (
        ({"drop_worst": 1.0}, "drop_worst is 1.0. Allowed: 0 to 0.99"),
        ({"rows": 2.5}, "rows is 2.5. It must be int"),
        ({"rows": True}, "rows is True"),
        ({"lr": "fast"}, "It must be float"),
        ({"decomposed": 1}, "It must be bool"),
        ({"weights": "equal"}, "Allowed: uniform, linear"),
        ({"betas": [0.9]}, "two numbers"),
        ({"betas": [0.9, 1.0]}, "Allowed: 0 to"),
        ({"samples": 1}, "samples is 1"),
    ):
        with pytest.raises(KnobError) as caught:
            Recipe().changed(change)
        assert said in str(caught.value)
    with pytest.raises(UnknownName, match="Did you mean 'drop_worst'"):
        Recipe().changed({"drop_wors": 0.1})
    with pytest.raises(UnknownName, match="Did you mean 'mue-snli-ve'"):
        recipe.load("mue-snli")
    with pytest.raises(KnobError, match="no recipe mine.toml"):
        recipe.load("mine.toml")


@pytest.mark.parametrize("line", ["lr 3e-5", "lr = ", "[train]", "lr = 3e-5 0.1", "weights = 'uniform'", "lr = 1\nlr = 2"])
def test_a_line_that_is_not_flat_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.toml").write_text(f"# mine\nrows = 3  # few\n{line}\n")
    with pytest.raises(KnobError, match=r"^mine.toml:[34]: "):
        recipe.load(str(tmp_path / "mine.toml"))


def test_tuning_changes_the_model_and_what_is_saved() -> None:
    from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration
    from exitwise.models.ofa.tuning import tune

    torch.manual_seed(0)
    model = OFAForConditionalGeneration(OFAConfig(
        vocab_size=30, d_model=8, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16, token_bucket_size=8, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0", dropout=0.0,
    ))  # fmt: skip
    before = sum(weight.requires_grad for weight in model.parameters())
    tune(model, decomposed=True, dropout=0.2, attention_dropout=0.3, drop_path=0.4, freeze_embeddings=True, checkpoint_layers=True)
    for stack in (model.model.encoder.layers, model.model.decoder.layers):
        assert [layer.drop_path for layer in stack] == pytest.approx([0.0, 0.2, 0.4])
        assert {layer.dropout for layer in stack} == {0.2} and {layer.self_attn.dropout for layer in stack} == {0.3}
    assert model.model.decoder.layers[0].cross_attn.dropout == 0.3
    assert model.config.decomposed and model.config.drop_path == 0.4 and model.model.encoder.config.decomposed
    assert not model.lm_head.weight.requires_grad and sum(weight.requires_grad for weight in model.parameters()) == before - 1
    assert model.model.encoder.layers[0].gradient_checkpointing
    tune(model, train_stem=True)
    assert all(weight.requires_grad for weight in model.model.stem.parameters()) and model.config.train_stem
    ids = torch.tensor([[0, 5, 2]])
    model.train()(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32), decoder_input_ids=ids, use_cache=False).logits.sum().backward()
    assert next(model.model.stem.parameters()).grad is not None
    with pytest.raises(KnobError, match="drop_path is 1.0"):
        tune(model, drop_path=1.0)
