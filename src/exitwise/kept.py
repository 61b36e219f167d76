"""What an engine keeps on disk: what was chosen and calibrated, and of which model; trained exits beside it; never the base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import __version__, heads, methods
from .calibrate.budget import Calibration
from .errors import CheckpointError, FingerprintError
from .heads import Exits

SETTINGS_FILE = "exitwise.json"
FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """What makes an engine on a given model. version: of Exitwise, by which it was saved."""

    method: str
    settings: Mapping[str, Any]
    exits: Exits | None
    calibration: Calibration | None
    version: str = __version__


def write(folder: str | Path, model: nn.Module, kept: Kept) -> Path:
    """Writes `folder`/exitwise.json, in one move, and the exits beside it."""
    path, base = Path(folder), fingerprint(model)
    path.mkdir(parents=True, exist_ok=True)
    if kept.exits is not None:
        heads.save(kept.exits, path, base)
    body = {
        "format": FORMAT, "version": kept.version, "method": kept.method, "settings": dict(kept.settings), "base": base,
        "exits": kept.exits is not None, "calibration": None if kept.calibration is None else kept.calibration.to_dict(),
    }  # fmt: skip
    part = path / (SETTINGS_FILE + ".part")
    part.write_text(json.dumps(body, indent=1))
    part.replace(path / SETTINGS_FILE)
    return path / SETTINGS_FILE


def read(folder: str | Path, model: nn.Module) -> Kept:
    """What was kept for this very model. Raises CheckpointError (no or damaged file), FingerprintError (another model)."""
    path = Path(folder) / SETTINGS_FILE
    try:
        body = json.loads(path.read_text())
        method, settings, base = body["method"], body["settings"], body["base"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there. Give the folder that `Engine.save` wrote.") from None
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as problem:
        raise CheckpointError(f"{path} is damaged ({problem!r}). Calibrate and save again.") from None
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {body.get('format')}; this version reads format {FORMAT}.")
    here = fingerprint(model)
    if here != base:
        wrong = ", ".join(f"{k} {base.get(k)!r} -> {here[k]!r}" for k in here if here[k] != base.get(k))
        raise FingerprintError(f"These exits were saved for another model ({wrong}). Load that model, or calibrate anew.")
    exits = _exits(Path(folder), model, base) if body.get("exits") else None
    knobs = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    calibration = None if body.get("calibration") is None else Calibration.from_dict(body["calibration"])
    return Kept(method, knobs, exits, calibration, body.get("version", "an earlier one"))


def _exits(folder: Path, model: nn.Module, base: Any) -> Exits:
    """The exits beside the settings, built by the file of the method that made them."""
    saved = heads.read(folder)
    if saved.base != base:
        raise FingerprintError(
            f"{saved.path} was trained on another model than the settings beside it were saved for. Copy both, or train anew."
        )
    build = methods.load(saved.made_by).exits
    if build is None:
        raise CheckpointError(
            f"{saved.path} says that it is of {saved.made_by!r}, which trains no exits. Train the exits and save them again."
        )
    return saved.into(build(saved.shape, **saved.about)).to(next(model.parameters()).device)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Class, number of parameters, and a hash over names, shapes and a sample of values of every parameter (in float32)."""
    digest, count = hashlib.sha256(), 0
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        count += values.numel()
        sample = values[:: max(1, values.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return {"class": type(model).__name__, "parameters": count, "sha256": digest.hexdigest()}
