"""Fine-tunes a classifier, then trains the exits of each method by its own objective, each within its share of the time; all resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from glue_data import Encoded
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from exitwise import Engine, methods
from exitwise.bench.schooling import AUTO, read_by
from exitwise.heads import Exits
from exitwise.train import Settings, train
from exitwise.train.checkpoint import AVERAGE
from exitwise.train.exits import Labelled, Learner
from exitwise.train.schedules import Schedule

ROWS = 32
TUNED = "tuned"


@dataclass(frozen=True)
class Tuning:
    """One fine-tuning. epochs: a multiple of what is asked for; average: share of the steps over which weights are averaged, 0 for none."""

    lr: float
    epochs: float
    schedule: Schedule
    average: float = 0.0


TUNINGS = (Tuning(5e-5, 0.8, "cosine", 0.32), Tuning(1e-4, 1.5, "linear"), Tuning(5e-5, 2.0, "linear"))
EPOCHS = {"deebert": 0.15, "fastbert": 0.15, "pabee": 0.25, "berxit": 0.2, "palbert": 0.1}  # times those of the fine-tuning
RATES = {"deebert": 1e-3, "fastbert": 1e-3, "pabee": 5e-5, "berxit": 5e-5, "palbert": 5e-5}
DONE = "done.safetensors"


@dataclass(frozen=True)
class School:
    """What every stage is given: a maker of the untuned classifier, the rows to learn from, where to write, how often the fine-tuning sees
    all rows, what exits read (`schooling.read_by`), and how many fine-tunings are averaged."""

    make: Callable[[], nn.Module]
    rows: Encoded
    folder: Path
    epochs: float
    reads: str = AUTO
    seed: int = 0
    soup: int = 1

    def settings(self, stage: str) -> Settings:
        """How long and how fast a method's exits learn."""
        return self._settings(stage, Tuning(RATES[stage], EPOCHS[stage], "cosine"))

    def tunings(self) -> list[Settings]:
        """The same of each fine-tuning."""
        return [self._settings(f"{TUNED}-{number}", tuning) for number, tuning in enumerate(TUNINGS[: self.soup], start=1)]

    def _settings(self, stage: str, tuning: Tuning) -> Settings:
        """In steps, so that a busy machine changes nothing but the time."""
        steps = max(1, round(self.epochs * tuning.epochs * len(self.rows) / ROWS))
        return Settings(
            self.folder / stage,
            steps=steps,
            lr=tuning.lr,
            schedule=tuning.schedule,
            average=max(0.0, 1 - 1 / (tuning.average * steps)) if tuning.average else 0.0,
            warmup=steps // 10,
            betas=(0.9, 0.999),
            save_every_s=120.0,
            seed=self.seed,
        )

    def batch(self, step: int) -> Labelled:
        """The batch of a training step."""
        inputs, labels = self.rows.batch(self.rows.drawn(step, ROWS, self.seed))
        return Labelled(inputs, labels, step)


def _kept(settings: Settings, module: nn.Module, learn: Callable[[Settings], object]) -> None:
    """Trains a stage, or reads what it gave when it is done; where the weights were averaged, the average."""
    done = settings.folder / DONE
    if not done.exists():
        learn(settings)
        if settings.average:
            load_model(module, str(settings.folder / AVERAGE))
        save_model(module, str(done) + ".part")
        Path(str(done) + ".part").replace(done)
    load_model(module, str(done))
    module.eval()


def _plain(model: nn.Module, batch: Labelled) -> dict[str, Tensor]:
    """Ordinary fine-tuning: the model's own loss."""
    loss: Tensor = model(**batch.inputs, labels=batch.labels).loss
    return {"loss": loss}


def tuned(school: School) -> nn.Module:
    """The classifier, fine-tuned; of several fine-tunings from the same beginning, the mean of their weights (model soups, Wortsman et al.
    2022, arXiv:2203.05482)."""
    model, total = school.make(), dict[str, Tensor]()
    for settings in school.tunings():
        one = school.make()
        _kept(settings, one, partial(train, one, school.batch, _plain))
        for name, value in one.state_dict().items():
            total[name] = value + total[name] if name in total else value.clone()
    model.load_state_dict({name: value / school.soup if value.is_floating_point() else value for name, value in total.items()})
    return model.eval()


def trained(school: School, base: nn.Module, name: str) -> tuple[nn.Module, Exits]:
    """(model, exits) of a method. A method that freezes the base shares it; another one goes on from a copy of it."""
    method = methods.load(name)
    assert method.objective is not None
    model = base
    if not method.frozen:
        model = school.make()
        model.load_state_dict(base.state_dict())
    engine = Engine(model, name)
    exits = engine.fresh_exits(school.seed)
    learner = Learner(model, engine.family, exits, method.frozen)
    exits.reads = read_by(Learner(base, engine.family, exits, frozen=True).eval(), school.batch(0).inputs, school.reads)
    objective: Any = method.objective
    saved: nn.Module = exits if method.frozen else learner
    _kept(school.settings(name), saved, lambda settings: train(learner, school.batch, objective, settings))
    model.requires_grad_(True).eval()
    return model, exits.eval()


def full_answers(model: nn.Module, rows: Encoded) -> list[int]:
    """The class that the model says of each row, at full depth."""
    said = [0] * len(rows)
    with torch.no_grad():
        for places in rows.in_turn(ROWS):
            inputs: Mapping[str, Tensor] = rows.batch(places)[0]
            for place, answer in zip(places, model(**inputs).logits.argmax(-1).tolist(), strict=True):
                said[place] = answer
    return said
