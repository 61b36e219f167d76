"""A language model of the first N layers, as an ordinary checkpoint that `from_pretrained` loads: what a model with trained exits can become."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import families
from .errors import CheckpointError, DepthError, FamilyError
from .stack import Stack

PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")  # fields of configurations with one entry for each layer


@dataclass(frozen=True)
class Cut:
    """What was written. layers: of the whole model; parameters: of the whole model and of the cut one, tied ones counted once."""

    out: str
    depth: int
    layers: int
    parameters: tuple[int, int]


def cut(model: nn.Module, depth: int, out: str | Path, tokenizer: Any = None) -> Cut:
    """Write the first `depth` layers of a decoder-only language model, its final norm and its head to the folder `out`.

    The weights are those of the model, unchanged; tied heads stay tied. The logits of what is written are the read-out at that depth. The
    tokenizer is saved beside it, if it is given. Raises DepthError for a depth outside 1..n, CheckpointError for a folder that is not empty,
    FamilyError for a model that is no decoder alone or whose configuration does not say how many layers there are.
    """
    folder, (stack, layers) = Path(out), _only_stack(model)
    if not 1 <= depth <= layers:
        raise DepthError(
            f"depth {depth} is outside {type(model).__name__}, which has {layers} layers. Depths run 1..{layers}; {layers} cuts nothing."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty. Give a new folder: nothing is overwritten.")
    config = _shallower(model, depth, layers)
    kept = {name: value for name, value in model.state_dict().items() if not _deeper(name, stack.path, depth)}
    count = _expected(model, config, kept)
    whole: Any = model
    part = folder.with_name(folder.name + ".part")  # so that a run that breaks off leaves nothing that looks like a model
    shutil.rmtree(part, ignore_errors=True)
    whole.save_pretrained(part, state_dict=kept)
    config.save_pretrained(part)
    if tokenizer is not None:
        tokenizer.save_pretrained(part)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return Cut(str(folder), depth, layers, (sum(p.numel() for p in model.parameters()), count))


def _only_stack(model: nn.Module) -> tuple[Stack, int]:
    """The model's only stack, a decoder's, and its number of layers."""
    stacks = families.of(model)[1].stacks_of(model)
    if len(stacks) != 1 or stacks[0].kind != "decoder":
        found = ", ".join(f"{stack.path} ({stack.kind})" for stack in stacks)
        raise FamilyError(f"A {type(model).__name__} is no decoder alone but {found}. Only decoder-only language models can be cut.")
    return stacks[0], len(stacks[0].layers(model))


def _shallower(model: Any, depth: int, layers: int) -> Any:
    """The model's configuration with so many layers, under whatever name it has them."""
    config = copy.deepcopy(model.config)
    if getattr(config, "num_hidden_layers", None) != layers:
        raise FamilyError(
            f"The configuration of a {type(model).__name__} says num_hidden_layers={getattr(config, 'num_hidden_layers', None)}, "
            f"but it has {layers} layers. Such a model cannot be cut."
        )
    config.num_hidden_layers = depth  # configurations that have another name for it map this one
    for name in PER_LAYER:
        entries = getattr(config, name, None)
        if isinstance(entries, list | tuple) and len(entries) == layers:
            setattr(config, name, list(entries[:depth]))
    config.dtype = next(model.parameters()).dtype
    return config


def _deeper(name: str, path: str, depth: int) -> bool:
    """Whether a weight is that of a layer after `depth`."""
    rest = name.removeprefix(path + ".")
    return rest != name and int(rest.split(".", 1)[0]) >= depth


def _expected(model: nn.Module, config: Any, kept: dict[str, Any]) -> int:
    """Parameters of the model that this configuration describes. Raises FamilyError where the weights that are kept are not its own."""
    kind: Any = type(model)
    with torch.device("meta"):
        small = kind(config)
    small.tie_weights()
    want = {name: value.shape for name, value in small.state_dict().items()}
    have = {name: value.shape for name, value in kept.items()}
    unlike = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    if unlike:
        raise FamilyError(
            f"A {kind.__name__} of {config.num_hidden_layers} layers has other weights than the first layers of this one "
            f"({', '.join(unlike[:3])}). Such a model cannot be cut."
        )
    return sum(p.numel() for p in small.parameters())
