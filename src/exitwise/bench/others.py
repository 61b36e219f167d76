"""Another method's row of a paper's table: its exits given, or trained on the frozen model where it has any to train there.

On a decoder most methods have none: the model's own head reads the state after each layer. What a row took is put down for the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import methods
from ..engine import Engine
from ..heads import Exits
from ..kept import fingerprint
from ..train import Settings, train
from ..train.exits import Labelled, Learner
from ..train.recipe import Recipe
from .ask import Asker
from .course import Course, device_of
from .tasks import Task

ROWS, RATE = 16, 1e-3


@dataclass
class Rivals:
    """How the exits of other methods come about. lessons: the items to learn from, read only where something is learnt. folder: where
    trainings are kept, to be resumed. given: method -> a folder of `Engine.save`. about: method -> what was done."""

    lessons: Callable[[], Task]
    folder: Path
    steps: int = 300
    seed: int = 0
    given: Mapping[str, Path] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)

    def missing(self, name: str) -> str | None:
        """Why a method cannot be run, if it cannot."""
        return None if name in methods.names() else f"this version has no method {name!r} (`exitwise methods` lists those it has)"

    def engine(self, asker: Asker, name: str) -> Engine:
        """The method on this model, with its exits. Raises CheckpointError and FingerprintError for given ones that do not fit."""
        if name in self.given:
            engine = Engine.load(self.given[name], asker.model)
            self.about[name] = {"given": str(self.given[name]), "trained": 0, "parameters": _size(engine.exits)}
            return engine
        method = methods.load(name)
        exits = Engine(asker.model, name).fresh_exits(self.seed) if method.exits is not None else None
        if exits is None or method.objective is None or not _size(exits):
            self.about[name] = {"given": None, "trained": 0, "parameters": 0}
            return Engine(asker.model, name)
        items = self._learn(asker, name, exits, method.objective)
        engine = Engine(asker.model, name, exits=exits)
        self.about[name] = {"given": None, "trained": self.steps, "parameters": _size(exits), "items": items}
        engine.save(self._place(asker, name) / "saved")
        return engine

    def _place(self, asker: Asker, name: str) -> Path:
        """One folder for each model and method."""
        return self.folder / f"exits-{name}-{fingerprint(asker.model)['sha256'][:12]}"

    def _learn(self, asker: Asker, name: str, exits: Exits, objective: Any) -> int:
        """Trains the exits in place, the model frozen, or takes up where it was; how many items there were."""
        task, engine, model = self.lessons(), Engine(asker.model, name), asker.model
        course = Course(task, asker.processor, Recipe(rows=min(ROWS, len(task.items))), self.seed)
        home, wanted = device_of(model), {each: each.requires_grad for each in model.parameters()}
        learner = Learner(model, engine.family, exits, frozen=True).to("cuda" if torch.cuda.is_available() else home)
        there = device_of(learner)

        def batch(step: int) -> Labelled:
            lesson = course.batch(step).to(there)
            return Labelled({**lesson.inputs, "use_cache": False}, lesson.labels, step)

        learnt = {"method": name, "items": len(task.items), "split": task.split, "task": task.kind}
        settings = Settings(
            self._place(asker, name), steps=self.steps, lr=RATE, warmup=min(20, self.steps // 10), seed=self.seed, learnt=learnt
        )
        try:
            train(exits, batch, lambda _, batch: objective(learner, batch), settings)  # only the exits are in the checkpoints
        finally:
            learner.to(home)
            for each, wants in wanted.items():
                each.requires_grad_(wants)
            exits.eval()
        return len(task.items)


def _size(exits: Exits | None) -> int:
    """Parameters of exits."""
    return 0 if exits is None else sum(each.numel() for each in exits.parameters())
