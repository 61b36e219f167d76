"""The measure of a training step: both losses are what they are called, turns alternate, and a peak is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from exitwise.bench import training
from exitwise.errors import KnobError
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration


class Small(training.Shape):
    """The same at a width that is quick."""

    def model(self, seed: int = 0) -> OFAForConditionalGeneration:
        torch.manual_seed(seed)
        config = OFAConfig(
            vocab_size=50_000, d_model=8, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=8, decoder_ffn_dim=8, image_bucket_size=2, token_bucket_size=32, max_position_embeddings=64, stem_channels=320,
            image_grids=[[1, 1]], decomposed=True, dropout=0.0, stem="efficientnet-lite0",
        )  # fmt: skip
        return OFAForConditionalGeneration(config).train()


SHAPE = Small(side=16)


def test_the_plain_loss_is_the_models_own_and_the_other_is_every_layers() -> None:
    model = SHAPE.model()
    lesson = SHAPE.lesson(model.config)
    assert (lesson.labels == -100).sum() == 4
    logits = [model.readout(h) for h in model(**lesson.inputs, output_hidden_states=True, use_cache=False).decoder_hidden_states[1:]]
    wanted = [F.cross_entropy(each.flatten(0, 1), lesson.labels.flatten(), label_smoothing=0.1) for each in logits]
    for loss, expected in (("plain", wanted[-1]), ("layerwise", sum(wanted)), ("layerwise, all logits kept", sum(wanted))):
        course = training.Course(training.Task("caption", Path("x"), ()), None, training.recipe_of(loss))
        assert torch.allclose(course.objective(model, lesson)["loss"], torch.as_tensor(expected)), loss
    with pytest.raises(KnobError, match="loss 'all'"):
        training.recipe_of("all")


def test_a_step_learns_and_turns_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = SHAPE.model()
    lesson = SHAPE.lesson(model.config)
    before = model.model.decoder.layers[0].fc1.weight.detach().clone()
    training.stepper(model, lesson, "layerwise")()
    assert not torch.equal(before, model.model.decoder.layers[0].fc1.weight)
    monkeypatch.setattr(training, "memory", lambda shape: {"memory_ratio": 1.0})
    run = training.measure(tmp_path, SHAPE, 3)
    assert all(len(seconds) == 3 for seconds in run["times_s"].values())
    assert run["time_ratio"] == run["median_s"]["layerwise"] / run["median_s"]["plain"]
    assert json.loads(next(tmp_path.glob("*-train-cost.json")).read_text())["status"] == "done"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak in /proc")
def test_a_peak_is_seen_after_it_has_passed() -> None:
    before = training.held("VmRSS")
    block = torch.ones(60_000_000)  # 240 MB
    del block
    assert training.held("VmHWM") >= before + 200e6
    found = training.peak(SHAPE, "plain", 1)
    assert found["before"] <= found["peak"] and found["built"] <= found["peak"]
