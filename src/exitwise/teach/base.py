"""What a paper's file of training must be."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ..heads import Exits, Shape
from ..train.exits import Objective


@runtime_checkable
class Teaching(Protocol):
    """A paper's training with its options. paper, about: as in `Method`. frozen: the model itself is not trained.

    exits: (model, layers) -> what is trained besides it, `Exits(..., heads=False)` without parts where that is nothing. objective:
    (layers, updates or None where only time ends the training) -> what the plain loop minimises. Both raise KnobError for what this model
    cannot have.
    """

    paper: str
    about: str
    frozen: bool

    def exits(self, model: Any, layers: int) -> Exits: ...

    def objective(self, layers: int, steps: int | None) -> Objective: ...


def nothing(model: Any, layers: int) -> Exits:
    """Exits without parts: the model's own head answers at every depth."""
    return Exits(Shape(model.config.get_text_config().hidden_size, 0, layers), heads=False)
