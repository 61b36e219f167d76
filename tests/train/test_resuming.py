"""A run goes on in the same configuration only; steps may be made of several batches; the rate falls as OFA's does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exitwise.errors import CheckpointError, KnobError
from exitwise.train import Settings, train, warmup_linear


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def batches(number: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(number))


def objective(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    return {"loss": (model(batch) - batch.sum(-1, keepdim=True)).square().mean()}


def settings(folder: Path, **changes: object) -> Settings:
    return Settings(**{"folder": folder, "steps": 2, "lr": 1e-2, "warmup": 0, "log_every": 1, **changes})  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 2e-2}, "lr was 0.01 and is 0.02"),
        ({"betas": (0.9, 0.999)}, "betas was [0.9, 0.98] and is [0.9, 0.999]"),
        ({"schedule": "linear"}, "schedule was 'cosine' and is 'linear'"),
        ({"learnt": {"task": "answer", "items": 7}}, "learnt.task was 'caption' and is 'answer'"),
        ({"learnt": {"task": "caption"}}, "learnt.items was 7 and is not given"),
        ({"learnt": {"task": "caption", "items": 7, "extra": 1}}, "learnt.extra is 1 and was not given"),
    ],
)
def test_another_configuration_is_refused_and_nothing_is_overwritten(tmp_path: Path, change: dict[str, object], named: str) -> None:
    learnt = {"task": "caption", "items": 7}
    train(network(), batches, objective, settings(tmp_path, learnt=learnt))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        train(network(), batches, objective, settings(tmp_path, **{"steps": 4, "learnt": learnt, **change}))
    assert named in str(caught.value) and ";" not in str(caught.value)
    assert contents(tmp_path) == before
    longer = settings(tmp_path, steps=4, seconds=60.0, save_every_s=1.0, patience=3, learnt=learnt)
    assert train(network(), batches, objective, longer).step == 4  # what ends a run and what is kept of it are free


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    train(network(), batches, objective, settings(tmp_path))
    file = tmp_path / "settings.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({name: kept[name] for name in kept if name not in ("learnt", "accumulate", "schedule")}))
    assert train(network(), batches, objective, settings(tmp_path, steps=3, learnt={"task": "caption"})).step == 3


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    small, large = network(), network()
    train(small, batches, objective, settings(tmp_path / "small", accumulate=3, steps=4))
    train(large, lambda n: torch.cat([batches(3 * n + k) for k in range(3)]), objective, settings(tmp_path / "large", steps=4))
    assert torch.allclose(small.weight, large.weight, atol=1e-6) and not torch.equal(small.weight, network().weight)  # fp32, another order
    norms = [[json.loads(line)["norm"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("small", "large")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)  # Adam forgives a scale; clipping does not


def test_a_schedule_or_a_number_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KnobError, match="schedule 'polynomial'"):
        settings(tmp_path, schedule="polynomial")
    with pytest.raises(KnobError, match="accumulate"):
        settings(tmp_path, accumulate=0)


def test_the_linear_schedule_by_hand() -> None:
    """fairseq: 100 steps, 6 of warm-up; at step 53 half of the fall is done."""
    rates = [warmup_linear(step, step / 100, 6) for step in range(101)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]) and rates[6] == pytest.approx(1.0)
    assert rates[53] == pytest.approx(0.5) and rates[100] == 0.0
    assert warmup_linear(0, 0.0, 0) == 1.0


def test_broken_settings_are_named(tmp_path: Path) -> None:
    train(network(), batches, objective, settings(tmp_path))
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(CheckpointError, match="settings.json is not what a training wrote"):
        train(network(), batches, objective, settings(tmp_path))
