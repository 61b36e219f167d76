"""Another method's row of a paper's table: its exits given, or trained on the frozen model where it has any to train there.

What a row took is put down for the record. Trained ramps speak for one token of a call: where answers of several tokens are scored
together, a method runs without any, and the model's own head reads its exits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from .. import methods
from ..engine import Engine
from ..errors import KnobError
from ..heads import Exits
from ..kept import fingerprint
from ..train.exits import Labelled
from ..train.recipe import Recipe
from .ask import Asker
from .course import Course, device_of
from .lessons import digest
from .schooling import Schooling, trainable, trained
from .tasks import Task

ROWS = 16


@dataclass
class Rivals:
    """How the exits of other methods come about. lessons: the items to learn from, read only where something is learnt. folder: where
    trainings are kept, to be resumed. given: method -> a folder of `Engine.save`. scored: whether answers of several tokens are scored
    together, which ramps cannot do. about: method -> what was done."""

    lessons: Callable[[], Task]
    folder: Path
    steps: int = 300
    seed: int = 0
    given: Mapping[str, Path] = field(default_factory=dict)
    scored: bool = False
    about: dict[str, dict[str, Any]] = field(default_factory=dict)

    def engine(self, asker: Asker, name: str) -> Engine:
        """The method on this model, with its exits. Raises KnobError, CheckpointError, FingerprintError for given ones that do not fit."""
        if name in self.given:
            engine = Engine.load(self.given[name], asker.model)
            if self.scored and _ramps(engine.exits):
                raise KnobError(
                    f"--exits {name}={self.given[name]} has ramps, which speak for one token, and answers of these items have several, "
                    "scored together. Leave it out: the model's own head then reads the exits."
                )
            self.about[name] = {"given": str(self.given[name]), "trained": 0, "parameters": _size(engine.exits)}
            return engine
        method = methods.load(name)
        bare = {"given": None, "trained": 0, "parameters": 0}
        if method.exits is None or method.objective is None:
            self.about[name] = bare
            return Engine(asker.model, name)
        engine = trainable(asker.model, name)
        if self.scored and _ramps(engine.exits):
            self.about[name] = {**bare, "scored": True}
            return Engine(asker.model, name)
        items = self._learn(asker, engine)
        self.about[name] = {"given": None, "trained": self.steps, "parameters": _size(engine.exits), "items": items}
        return engine

    def _learn(self, asker: Asker, engine: Engine) -> int:
        """Trains the exits in place, the model frozen, or takes up where it was, and saves the engine; how many items there were."""
        task, model = self.lessons(), engine.model
        course = Course(task, asker.processor, Recipe(rows=min(ROWS, len(task.items))), self.seed)
        school = Schooling(steps=self.steps, seed=self.seed, data=f"{task.kind} {digest(task.items)}")
        home = device_of(model)
        there = torch.device("cuda") if torch.cuda.is_available() else home
        place = self._place(engine, school)

        def batch(step: int) -> Labelled:
            lesson = course.batch(step).to(there)
            return Labelled({**lesson.inputs, "use_cache": False}, lesson.labels, step)

        parts = [part for part in (model, engine.exits) if part is not None]
        try:
            for part in parts:
                part.to(there)
            trained(engine, batch, place, school)
        finally:
            for part in parts:
                part.to(home)
        engine.save(place / "saved")
        return len(task.items)

    def _place(self, engine: Engine, school: Schooling) -> Path:
        """One folder for each method, model, and training."""
        told = sha256(repr((fingerprint(engine.model)["sha256"], school)).encode()).hexdigest()
        return self.folder / f"exits-{engine.method_name}-{told[:12]}"


def _ramps(exits: Exits | None) -> bool:
    """Whether these exits speak for a decoder."""
    return exits is not None and exits.ramps is not None


def _size(exits: Exits | None) -> int:
    """Parameters of exits."""
    return 0 if exits is None else sum(each.numel() for each in exits.parameters())
