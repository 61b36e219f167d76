"""One plain training loop on accelerate: limited by time or steps, resumable, logged, with a latest checkpoint that always loads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .checkpoint import AVERAGE, load, same, save, weights_of
from .schedules import SCHEDULES
from .settings import Progress, Settings

Batch = Any
Batches = Callable[[int], Batch]
Objective = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass
class _Clock:
    """When the log, the checkpoint and the validation were last due, in used seconds."""

    saved: float = 0.0
    validated: float = 0.0


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    settings: Settings,
    validate: Validate | None = None,
    on_save: Callable[[nn.Module], None] | None = None,
) -> Progress:
    """Trains `model` in place and returns the progress. A folder with a checkpoint is resumed.

    batches: number -> batch, the same for the same number, so that a resumed run sees what an unbroken one would; step n takes the batches
    from n * accumulate on. objective: (model, batch) -> mapping with "loss" and anything else to log. Under `accelerate launch` each
    process calls both for its own share, and gradients are averaged. validate: model -> mapping with "loss"; called in eval mode without
    gradients. on_save is called at each checkpoint, for an export of one's own. Raises CheckpointError where the folder holds another
    model's checkpoint, or one of another configuration: see `checkpoint.same`.
    """
    same(settings)
    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no", cpu=not torch.cuda.is_available())
    set_seed(settings.seed)
    settings.folder.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(model, settings)
    progress = load(settings.folder, model, optimizer)
    model.to(accelerator.device)
    average = _average(model, settings)
    clock = _Clock(progress.used_s, progress.used_s)
    first = accelerator.is_main_process
    bar = tqdm(total=settings.steps, initial=progress.step, desc="train", unit="step", mininterval=5, disable=not first)
    while not _ended(progress, settings):
        began = time.monotonic()
        # Dropout repeats when a run is resumed, and differs between processes.
        torch.manual_seed((settings.seed * 1_000_003 + progress.step) * accelerator.num_processes + accelerator.process_index)
        rate = settings.lr * SCHEDULES[settings.schedule](progress.step, _share(progress, settings), settings.warmup)
        parts = range(progress.step * settings.accumulate, (progress.step + 1) * settings.accumulate)
        figures = _step(accelerator, model, optimizer, objective, map(batches, parts), settings, rate)
        if average is not None:
            average.update_parameters(model)
        progress.step += 1
        progress.used_s += time.monotonic() - began
        bar.update()
        if first and progress.step % settings.log_every == 0:
            numbers = {name: float(value) for name, value in figures.items()}
            bar.set_postfix({name: f"{value:.3f}" for name, value in numbers.items()})
            _log(settings.folder, {"step": progress.step, "used_s": round(progress.used_s, 1), "lr": rate, **numbers})
        if first:
            _housekeeping(model, average, optimizer, progress, settings, clock, validate, on_save)
        _agree(accelerator, progress)
    bar.close()
    if first:
        _keep(model, average, optimizer, progress, settings, on_save)
    accelerator.wait_for_everyone()
    return progress


def _agree(accelerator: Accelerator, progress: Progress) -> None:
    """Takes the first process's clock and patience everywhere, so that all keep one learning rate and stop at one step."""
    if accelerator.num_processes > 1:
        told = torch.tensor([progress.used_s, float(progress.stale)], dtype=torch.float64, device=accelerator.device)
        broadcast(told)
        progress.used_s, progress.stale = float(told[0]), int(told[1])


def _average_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """The mean over processes, in one message. The objective calls parts of the model, so DDP's hooks on forward would not fire."""
    if accelerator.num_processes > 1:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        flat /= accelerator.num_processes
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):  # type: ignore[no-untyped-call]
            grad.copy_(part.view_as(grad))


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    objective: Objective,
    parts: Iterable[Batch],
    settings: Settings,
    rate: float,
) -> dict[str, Tensor]:
    """One update from the mean gradient of its batches; what the objective reported of the last, detached, with the gradient's norm before
    clipping. A loss that is not finite is skipped."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    figures: dict[str, Tensor] = {}
    for batch in parts:
        with accelerator.autocast():
            figures = dict(objective(model, batch))
        accelerator.backward(figures["loss"] / settings.accumulate)
    _average_gradients(accelerator, model)
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], settings.clip)
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**{name: value.detach() for name, value in figures.items()}, "norm": norm}


def _average(model: nn.Module, settings: Settings) -> AveragedModel | None:
    """The moving average of the weights, as it was kept in the folder, or beginning with the model as it is."""
    if not settings.average:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))  # type: ignore[no-untyped-call]
    if (settings.folder / AVERAGE).exists():
        average.module.load_state_dict(load_file(settings.folder / AVERAGE), strict=False)
        average.n_averaged.fill_(1)  # the next update averages, and does not begin anew
    return average


def _keep(
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    settings: Settings,
    on_save: Callable[[nn.Module], None] | None,
) -> None:
    """A checkpoint, and the export of what is to be used."""
    save(settings.folder, model, optimizer, progress, settings, average)
    if on_save is not None:
        on_save(model if average is None else average.module)


def _housekeeping(
    model: nn.Module,
    average: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    settings: Settings,
    clock: _Clock,
    validate: Validate | None,
    on_save: Callable[[nn.Module], None] | None,
) -> None:
    """Validates and saves where it is due."""
    if validate is not None and progress.used_s - clock.validated >= settings.validate_every_s:
        began = time.monotonic()
        judged = model if average is None else average.module
        judged.eval()
        with torch.no_grad():
            figures = dict(validate(judged))
        progress.used_s += time.monotonic() - began
        clock.validated = progress.used_s
        improved = figures["loss"] < progress.best
        progress.best, progress.stale = (figures["loss"], 0) if improved else (progress.best, progress.stale + 1)
        progress.history.append({"step": progress.step, **figures})
        _log(settings.folder, {"step": progress.step, "used_s": round(progress.used_s, 1), **{f"valid/{k}": v for k, v in figures.items()}})
        if improved:
            save_file(weights_of(judged), settings.folder / "best.safetensors")
    if progress.used_s - clock.saved >= settings.save_every_s:
        clock.saved = progress.used_s
        _keep(model, average, optimizer, progress, settings, on_save)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; norms, biases and tables of one dimension are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def _share(progress: Progress, settings: Settings) -> float:
    """How much of the budget is used, 0 to 1 and above."""
    by_time = progress.used_s / settings.seconds if settings.seconds else 0.0
    by_steps = progress.step / settings.steps if settings.steps else 0.0
    return max(by_time, by_steps)


def _ended(progress: Progress, settings: Settings) -> bool:
    return _share(progress, settings) >= 1 or (settings.patience is not None and progress.stale >= settings.patience)


def _log(folder: Path, row: Mapping[str, Any]) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
