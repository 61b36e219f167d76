"""Exits trained on a model that stays as it is: the objective of a method, on a classifier's texts or on what a unified model is to say.

The base is frozen whatever the method's paper trains with it, so that all methods are compared on one model; a paper that trains the base
too (PABEE, BERxiT, PALBERT) may do better so. A training that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import methods
from ..engine import Engine
from ..errors import CheckpointError, KnobError
from ..heads import RAMPS, READS, Exits
from ..kept import fingerprint
from ..train import Settings, train
from ..train.exits import Labelled, Learner, Written
from .cells import key_of

DONE = "done.safetensors"
ALIKE = 0.05  # all-MiniLM-L6, trained to be averaged: its first token differs by 0.01 at layer 3, its mean by 1.0
AUTO, READ = "auto", "reads"
RATES = {"heads": 1e-3, RAMPS: 5e-4}
Batch = Callable[[int], Labelled]


@dataclass(frozen=True)
class Schooling:
    """How long and how fast. seconds, steps: whichever ends first. lr: None takes 0.001, for a decoder 0.0005. data: what tells the rows
    from others, for a training that goes on. reads: what an encoder's exits read (`heads.Exits`), or 'auto', see `read_by`."""

    seconds: float | None = None
    steps: int | None = None
    lr: float | None = None
    seed: int = 0
    data: str = ""
    reads: str = AUTO

    def __post_init__(self) -> None:
        if self.reads not in (AUTO, *READS):
            raise KnobError(f"reads={self.reads!r} is not allowed. Allowed: {', '.join((AUTO, *READS))}.")


def trainable(model: Any, name: str) -> Engine:
    """An engine with fresh exits of a method. Raises KnobError for a method that trains none of its own for this model."""
    method = methods.load(name)
    if method.objective is None or method.exits is None:
        raise KnobError(f"{name} trains no exits. Methods that do: {', '.join(n for n in methods.names() if methods.load(n).objective)}.")
    engine = Engine(model, name)
    if not set(engine.layers) & set(method.calibrated):
        raise KnobError(f"{name} leaves at {', '.join(method.calibrated)}, and this model has {', '.join(engine.layers)}. Take another.")
    return Engine(model, name, exits=engine.fresh_exits())


def read_by(learner: Learner, inputs: Mapping[str, Any], wished: str = AUTO) -> str:
    """What fresh exits read: as wished, or where that is 'auto': the first token as in the papers, unless all rows have nearly the same
    state there at some depth, as encoders have that were trained to be averaged; then the mean of all tokens."""
    if wished != AUTO:
        return wished
    if learner.stack.kind == "decoder" or learner.exits.ramps is not None:
        return READS[0]
    return READS[1] if learner.spread(inputs) < ALIKE else READS[0]


def trained(engine: Engine, batch: Batch, folder: Path, asked: Schooling) -> Exits:
    """The engine's exits, trained in FOLDER, or read from it where they are done. Raises CheckpointError for a folder of other exits."""
    exits, method = engine.exits, engine.method
    assert exits is not None and method.objective is not None
    learnt = {"method": engine.method_name, "data": asked.data, "base": key_of(fingerprint(engine.model))}
    done = folder / DONE
    if done.exists():
        return _read(exits, done, learnt)
    fit: Any = method.objective
    before = {name: value.requires_grad for name, value in engine.model.named_parameters()}
    learner = (Learner if exits.ramps is None else Written)(engine.model, engine.family, exits, frozen=True)
    settings = Settings(
        folder, seconds=asked.seconds, steps=asked.steps, warmup=20, save_every_s=60.0, betas=(0.9, 0.999), seed=asked.seed, learnt=learnt,
        lr=asked.lr or RATES[RAMPS if exits.ramps is not None else "heads"],
    )  # fmt: skip
    try:
        exits.reads = read_by(learner, batch(0).inputs, asked.reads)
        train(_Parts(learner), lambda step: batch(step), lambda _, one: _loss(fit, learner, one), settings)
    finally:
        for name, value in engine.model.named_parameters():
            value.requires_grad_(before[name])
    part, about = done.with_name(done.name + ".part"), {key: str(value) for key, value in learnt.items()}
    save_file({n: v.detach().contiguous() for n, v in exits.state_dict().items()}, part, metadata={**about, READ: exits.reads})
    part.replace(done)
    return exits.eval()


class _Parts(torch.nn.Module):
    """The exits as what is trained and kept in checkpoints; the learner with its base stands beside them."""

    learner: Learner

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.exits = learner.exits
        object.__setattr__(self, "learner", learner)  # not a part: it is neither moved nor saved


def _loss(objective: Any, learner: Learner, batch: Labelled) -> Mapping[str, Tensor]:
    """The objective on a frozen base; a step that trains the base alone, of those that alternate, gives way to the next."""
    given = learner.asked(batch) if isinstance(learner, Written) else batch
    found: Mapping[str, Tensor] = objective(learner, given)
    if not found["loss"].requires_grad:
        found = objective(learner, replace(given, step=given.step + 1))
    return found


def _read(exits: Exits, done: Path, learnt: Mapping[str, Any]) -> Exits:
    from safetensors import safe_open

    with safe_open(done, "pt") as opened:
        about = opened.metadata() or {}
    unlike = sorted(key for key, value in learnt.items() if about.get(key) != str(value))
    if unlike:
        raise CheckpointError(f"{done.parent} holds exits of another {', '.join(unlike)}. Give another --out, or delete it.")
    exits.load_state_dict(load_file(done))
    exits.reads = about.get(READ, READS[0])
    return exits.eval()
