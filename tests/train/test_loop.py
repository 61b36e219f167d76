"""The loop learns, resumes exactly, stops when told, and never leaves a checkpoint that does not load."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exitwise.errors import CheckpointError, KnobError
from exitwise.train import Settings, load, train, warmup_cosine

TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


def network() -> nn.Module:
    """A small net with dropout, so that a resumed run must also repeat the dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))


def batches(step: int) -> tuple[Tensor, Tensor]:
    """A pure function of the step."""
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return inputs, inputs @ TRUTH.T


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    inputs, targets = batch
    return {"loss": (model(inputs) - targets).square().mean()}


def settings(folder: Path, steps: int, **changes: object) -> Settings:
    """Quick settings; the schedule is a function of steps, so that runs compare."""
    return Settings(**{"folder": folder, "steps": steps, "lr": 1e-2, "warmup": 5, "log_every": 1, **changes})  # type: ignore[arg-type]


def test_it_learns_and_logs(tmp_path: Path) -> None:
    train(network(), batches, objective, settings(tmp_path, 150))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert sum(row["loss"] for row in rows[-10:]) < 0.2 * sum(row["loss"] for row in rows[:10])
    assert rows[0]["lr"] < rows[4]["lr"] > rows[-1]["lr"]


class Interrupted(Exception):
    """What ends a run in the middle."""


def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path) -> None:
    whole, broken = network(), network()
    train(whole, batches, objective, settings(tmp_path / "whole", 30))

    def interrupt(step: int) -> tuple[Tensor, Tensor]:
        if step == 12:
            raise Interrupted
        return batches(step)

    options = settings(tmp_path / "broken", 30, save_every_s=1e-9)  # a checkpoint after every step
    with pytest.raises(Interrupted):
        train(broken, interrupt, objective, options)
    fresh = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))
    progress = train(fresh, batches, objective, options)
    assert progress.step == 30
    for mine, theirs in zip(fresh.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_average_is_what_is_judged_and_exported_and_it_resumes(tmp_path: Path) -> None:
    """By hand: it begins with the weights after the first step, and moves by a tenth towards each later ones."""
    seen: list[Tensor] = []

    def watched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        seen.append(model[0].weight.detach().clone())  # type: ignore[index]
        return objective(model, batch)

    judged: list[Tensor] = []

    def look(model: nn.Module) -> dict[str, float]:
        judged.append(model[0].weight.detach().clone())  # type: ignore[index]
        return {"loss": 0.0}

    model = network()
    options = settings(tmp_path, 8, average=0.9, save_every_s=1e-9, validate_every_s=1e-9)
    train(model, batches, watched, options, look)
    after = [*seen[1:], model[0].weight.detach()]  # type: ignore[index]
    expected = [after[0]]
    for weights in after[1:]:
        expected.append(0.9 * expected[-1] + 0.1 * weights)
    assert all(torch.allclose(mine, theirs, atol=1e-6) for mine, theirs in zip(judged, expected, strict=True))  # fp32, another order
    assert not torch.allclose(judged[-1], after[-1], atol=1e-4)

    exported: list[Tensor] = []
    half = tmp_path / "half"

    def interrupt(step: int) -> tuple[Tensor, Tensor]:
        if step == 4:
            raise Interrupted
        return batches(step)

    options = settings(half, 8, average=0.9, save_every_s=1e-9)
    with pytest.raises(Interrupted):
        train(network(), interrupt, objective, options)
    train(network(), batches, objective, options, on_save=lambda kept: exported.append(kept[0].weight.detach().clone()))  # type: ignore[index]
    assert torch.equal(exported[-1], judged[-1])


def test_time_ends_it_too(tmp_path: Path) -> None:
    progress = train(network(), batches, objective, Settings(tmp_path, seconds=0.3, warmup=0))
    assert progress.used_s >= 0.3 and progress.step > 1


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 0.0])
    kept: list[Tensor] = []
    model = network()

    def validate(judged: nn.Module) -> dict[str, float]:
        assert not judged.training
        loss = next(losses)
        if loss == 1.0:
            kept.append(judged[0].weight.detach().clone())  # type: ignore[index]
        return {"loss": loss}

    progress = train(model, batches, objective, settings(tmp_path, 100, patience=3, validate_every_s=1e-9), validate)
    assert progress.step == 5 and progress.best == 1.0
    best = load_best(tmp_path)
    assert torch.equal(best["0.weight"], kept[0])


def load_best(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "best.safetensors")


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, batches, lambda net, batch: {"loss": net(batch[0]).sum() * math.inf}, settings(tmp_path, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(network(), batches, objective, settings(tmp_path, 2))
    with pytest.raises(CheckpointError, match="another model|does not fit"):
        load(tmp_path, nn.Linear(3, 16))
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tmp_path, nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1)))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError):
        load(tmp_path, network())


def test_tied_weights_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
        model[1].weight = model[0].weight  # type: ignore[union-attr]
        return model

    model = tied()
    train(model, batches, objective, settings(tmp_path, 3))
    other = tied()
    load(tmp_path, other)
    inputs = torch.randn(4, 3)
    assert torch.equal(model(inputs), other(inputs))


def test_settings_without_an_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KnobError, match="no end"):
        Settings(tmp_path)
    with pytest.raises(KnobError, match="lr"):
        Settings(tmp_path, steps=1, lr=0.0)


def test_the_schedule_rises_then_falls_to_its_floor() -> None:
    rates = [warmup_cosine(step, step / 100, 10) for step in range(101)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[100] == pytest.approx(0.02) and min(rates[10:]) == rates[100]


WORKER = """
import sys, torch
from pathlib import Path
from exitwise.train import Settings, train
from accelerate import PartialState
PartialState(cpu=True)
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
rank = PartialState().process_index
def batches(step):
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(2 * step + rank))
def objective(model, inputs):
    return {"loss": (model(inputs) - inputs.sum(-1, keepdim=True)).square().mean()}
done = train(model, batches, objective, Settings(Path(sys.argv[1]), seconds=90, steps=20, lr=1e-2, warmup=0, save_every_s=0.1))
print(done.step, model.weight.flatten().tolist(), model.bias.tolist())
"""


def test_two_processes_stay_one_model(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            env={**common, "RANK": rank, "LOCAL_RANK": rank, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [worker.communicate(timeout=180) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    said = [out.strip().splitlines()[-1] for out, _ in told]
    assert said[0] == said[1] and said[0].split()[0] == "20"
