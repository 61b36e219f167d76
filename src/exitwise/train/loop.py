"""One plain training loop on accelerate: limited by time or steps, resumable, logged, with a latest checkpoint that always loads."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from exitwise.errors import CheckpointError, KnobError

from .schedules import warmup_cosine

AVERAGE = "average.safetensors"
Batch = Any
Batches = Callable[[int], Batch]
Objective = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Settings:
    """How to train. The budget is `seconds` or `steps`, whichever ends first; give at least one."""

    folder: Path
    seconds: float | None = None
    steps: int | None = None
    lr: float = 7e-4
    warmup: int = 500
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = False
    seed: int = 0
    log_every: int = 20
    save_every_s: float = 180.0
    validate_every_s: float = 600.0
    average: float = 0.0  # decay of the moving average of the weights, which is then what is validated and exported; 0: none
    patience: int | None = None  # validations without a better "loss" before stopping; None never stops early

    def __post_init__(self) -> None:
        if self.seconds is None and self.steps is None:
            raise KnobError("the training has no end. Give seconds, steps or both.")
        for name in ("seconds", "steps", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise KnobError(f"{name} is {value}, but must be above 0.")
        if not 0 <= self.average < 1:
            raise KnobError(f"average is {self.average}. Allowed: 0 (none) to below 1, such as 0.999.")


@dataclass
class Progress:
    """What a resumed run has to know: steps done, seconds used, the best validation and how long ago it was."""

    step: int = 0
    used_s: float = 0.0
    best: float = math.inf
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


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

    batches: step -> batch, the same for the same step, so that a resumed run sees what an unbroken one would. objective: (model, batch)
    -> mapping with "loss" and anything else to log. Under `accelerate launch` each process calls both for its own share, and gradients
    are averaged. validate: model -> mapping with "loss"; called in eval mode without gradients.
    on_save is called at each checkpoint, for an export of one's own.
    """
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
        rate = settings.lr * warmup_cosine(progress.step, _share(progress, settings), settings.warmup)
        figures = _step(accelerator, model, optimizer, objective, batches(progress.step), rate, settings.clip)
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
    accelerator: Accelerator, model: nn.Module, optimizer: Any, objective: Objective, batch: Batch, rate: float, clip: float
) -> dict[str, Tensor]:
    """One update; what the objective reported, detached, with the gradient's norm before clipping. A loss that is not finite is skipped."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    with accelerator.autocast():
        figures = dict(objective(model, batch))
    accelerator.backward(figures["loss"])
    _average_gradients(accelerator, model)
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
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
            save_file(_weights(judged), settings.folder / "best.safetensors")
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


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Trained and frozen weights, shared tensors once."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.detach().contiguous()
    return kept


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    settings: Settings,
    average: AveragedModel | None = None,
) -> None:
    """Writes the checkpoint, each file replaced in one move: model.safetensors, state.pt (optimizer and progress), settings.json, and
    average.safetensors where the weights are averaged."""
    state = {"optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    writers: dict[str, Callable[[Path], None]] = {
        **({AVERAGE: lambda path: save_file(_weights(average.module), path)} if average is not None else {}),
        "model.safetensors": lambda path: save_file(_weights(model), path),
        "state.pt": lambda path: torch.save(state, path),
        "settings.json": lambda path: _write_json(path, {**asdict(settings), "folder": settings.folder.name}),
    }
    for name, write in writers.items():
        part = folder / f"{name}.part"
        write(part)
        os.replace(part, folder / name)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Restores a checkpoint into model and optimizer; a folder without one leaves them as they are and gives a fresh progress."""
    if not (folder / "state.pt").exists():
        return Progress()
    try:
        missing, surplus = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        held = set(_weights(model))
        lacking = sorted(held & set(missing))
        if surplus or lacking:
            raise CheckpointError(f"{folder} holds another model: {sorted(surplus)[:3]} are surplus, {lacking[:3]} missing.")
        state = torch.load(folder / "state.pt", weights_only=True)
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        hint = "Delete the folder, or train the model that it was made by."
        raise CheckpointError(f"the checkpoint in {folder} does not fit this model: {error}. {hint}") from error
    return Progress(**state["progress"])
