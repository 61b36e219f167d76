"""Opens a file of OFA weights as data: tensors by their names there, and the settings beside them. Nothing in a file is executed."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exitwise.errors import CheckpointError

NAMES = ("model.safetensors", "pytorch_model.bin")
ENDINGS = (".pt", ".pth", ".bin", ".safetensors")


class Bookkeeping:
    """Stands in for a value of the training's bookkeeping that nobody looks at: a number of NumPy's, say, in the meters."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# The classes that a checkpoint may name besides those of plain weights. Only the first is the real one; the others are stood in for.
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,  # the settings of a fairseq model
    (Bookkeeping, "numpy.core.multiarray.scalar"),  # losses and scores so far, from NumPy before 2
    (Bookkeeping, "numpy._core.multiarray.scalar"),  # the same from NumPy 2
    (Bookkeeping, "numpy.dtype"),
)


@dataclass(frozen=True)
class Opened:
    """What a file holds.

    `tensors` are mapped from the disk where the format allows it, and not read yet: the file must stay as it is while they are in use.
    `settings` are those of the model, `fairseq` tells whose words they are in: the file's own, or those of the config.json beside it.
    `sections` are parts of the file that were not looked at, such as the state of the optimizer.
    """

    file: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    fairseq: bool
    sections: tuple[str, ...] = ()


def open_weights(path: str | Path) -> Opened:
    """The weights of a file, or of the only file of weights in a folder. Raises CheckpointError for anything else, with what it is."""
    file = _file(Path(path))
    try:
        with file.open("rb") as opened:
            start = opened.read(24)
    except OSError as problem:
        raise CheckpointError(f"{file} cannot be opened: {problem.strerror or problem}.") from problem
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is the pointer that Git LFS leaves, not the weights. Run `git lfs pull` where it came from.")
    if file.suffix == ".safetensors":
        return Opened(file, _safetensors(file), _beside(file), fairseq=False)
    zipped, pickled = start.startswith(b"PK\x03\x04"), start.startswith(b"\x80")
    if not zipped and not pickled:
        raise CheckpointError(
            f"{file} is no checkpoint: it begins with {start[:12]!r}. Give a .pt, .bin or .safetensors file, or its folder."
        )
    return _unpacked(file, _pickle(file, mapped=zipped))


def is_checkpoint(path: str | Path) -> bool:
    """Whether `load_checkpoint` is for this path, and not from_pretrained: a file of weights, or a folder that OFA's own model does not
    read. No weights are opened."""
    path = Path(path)
    if not path.is_dir():
        return path.is_file() and path.suffix in ENDINGS
    if not (path / "config.json").is_file():
        return any(each.suffix in ENDINGS for each in path.iterdir())
    settings = _beside(path / "config.json")
    return settings.get("model_type") == "ofa" and "stem" not in settings  # the fork says resnet_type


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist. Give a checkpoint (.pt, .bin, .safetensors) or the folder that holds one.")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(each.name for each in path.iterdir() if each.suffix in ENDINGS)
    if len(found) == 1:
        return path / found[0]
    several = f"several files of weights ({', '.join(found[:4])}); give one of them" if found else "no weights (.pt, .bin, .safetensors)"
    raise CheckpointError(f"The folder {path} holds {several}.")


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, ValueError) as problem:
        raise _damaged(file, problem) from problem


def _pickle(file: Path, mapped: bool) -> Any:
    """What was pickled, with foreign classes refused. Older files, which are no zip archive, cannot be mapped and are read."""
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as problem:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(problem))
        if foreign is None:
            raise _damaged(file, problem) from problem
        raise CheckpointError(
            f"{file} holds more than weights: it names {foreign[1]}, which no checkpoint of OFA does. That could run foreign code, so it "
            "was left closed. Get the file from its makers, or save its weights alone (a dict of tensors) where you trust it."
        ) from problem
    except Exception as problem:  # a damaged pickle can fail in any way
        raise _damaged(file, problem) from problem


def _damaged(file: Path, problem: BaseException) -> CheckpointError:
    lines = str(problem).splitlines() or [type(problem).__name__]
    size = file.stat().st_size
    return CheckpointError(
        f"{file} ({size:,} bytes) cannot be read to its end: it is cut short or damaged. Fetch it again. ({lines[0][:160]})"
    )


def _unpacked(file: Path, found: Any) -> Opened:
    """A fairseq container ({'model': tensors, 'cfg': ..., ...}), or the tensors alone."""
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{file} holds a {type(found).__name__}. A checkpoint is a dict of tensors, or fairseq's dict with a 'model'."
        )
    container = isinstance(found.get("model"), Mapping)
    weights = found["model"] if container else found
    strange = [f"{name} ({type(value).__name__})" for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange or not weights:
        said = f"besides tensors, {', '.join(strange[:3])}" if strange else "no tensors"
        raise CheckpointError(f"{file} holds {said}. A checkpoint is a dict of tensors, or fairseq's dict with a 'model'.")
    tensors = {str(name): value.detach() for name, value in weights.items()}
    if not container:
        return Opened(file, tensors, _beside(file), fairseq=False)
    return Opened(file, tensors, _stated(found), fairseq=True, sections=_sections(found))


def _stated(found: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings in a container: under 'args' in older files, under 'cfg' in newer ones."""
    stated, cfg = found.get("args"), found.get("cfg")
    if stated is None and isinstance(cfg, Mapping):
        stated = cfg.get("model")
    if isinstance(stated, argparse.Namespace):
        return dict(vars(stated))
    return dict(stated) if isinstance(stated, Mapping) else {}


def _sections(found: Mapping[str, Any]) -> tuple[str, ...]:
    names = [str(name) for name, value in found.items() if name not in ("model", "cfg", "args") and value is not None]
    extra = found.get("extra_state")
    if isinstance(extra, Mapping) and "ema" in extra:
        names.append("extra_state.ema (weights averaged over the training)")
    return tuple(names)


def _beside(file: Path) -> dict[str, Any]:
    config = file.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise CheckpointError(
            f"{config} is no JSON ({problem}). Fetch it again, or remove it: sizes are read off the weights."
        ) from problem
    if not isinstance(found, dict):
        raise CheckpointError(f"{config} holds no object of settings. Fetch it again, or remove it: sizes are read off the weights.")
    return found
