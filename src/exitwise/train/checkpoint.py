"""Checkpoints of a training: written so that the latest always loads, read back into the same model, refused to another configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from exitwise.errors import CheckpointError

from .settings import Progress, Settings

AVERAGE = "average.safetensors"
FREE = {"folder", "seconds", "steps", "log_every", "save_every_s", "validate_every_s", "patience"}  # a resumed run may change them


def kept(folder: Path) -> dict[str, Any]:
    """The settings of the run whose checkpoint the folder holds; empty without one. Raises CheckpointError for a broken file."""
    file = folder / "settings.json"
    if not (file.exists() and (folder / "state.pt").exists()):
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is not what a training wrote ({error}). Give another folder.") from error
    return found if isinstance(found, dict) else {}


def same(settings: Settings) -> None:
    """Raises CheckpointError where the folder holds a checkpoint of another configuration, and names what differs. Nothing is written."""
    was = _flat(kept(settings.folder))
    if not was:
        return
    asked = _flat(json.loads(json.dumps(asdict(settings), default=str)))
    unlike = [f"{name} was {was[name]!r} and is {asked[name]!r}" for name in was if name in asked and was[name] != asked[name]]
    gone = [f"{name} was {was[name]!r} and is not given" for name in was if name not in asked]
    come = [f"{name} is {asked[name]!r} and was not given" for name in asked if name not in was and name.startswith("learnt.")]
    if faults := unlike + gone + (come if any(name.startswith("learnt.") for name in was) else []):
        raise CheckpointError(
            f"{settings.folder} holds a run of another configuration: {'; '.join(faults)}. Nothing was changed. Go on with the same "
            "configuration, or give another folder."
        )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields that have to agree; those of `learnt` one by one."""
    fields = {name: value for name, value in settings.items() if name not in FREE | {"learnt"}}
    return {**fields, **{f"learnt.{name}": value for name, value in settings.get("learnt", {}).items()}}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
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
        **({AVERAGE: lambda path: save_file(weights_of(average.module), path)} if average is not None else {}),
        "model.safetensors": lambda path: save_file(weights_of(model), path),
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
        held = set(weights_of(model))
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
