"""What a paper's file of training must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CheckpointError
from ..heads import Exits, Shape
from ..train.exits import Objective


class Teaching(ABC):
    """A paper's training with its options. paper, about: as in `Method`. frozen: the model itself is not trained."""

    paper: ClassVar[str]
    about: ClassVar[str]
    frozen: ClassVar[bool] = False

    @abstractmethod
    def objective(self, layers: int, steps: int | None) -> Objective:
        """What the plain loop minimises, for a model of so many layers and a training of so many updates (None: only time ends it). Raises
        KnobError or DepthError for options that do not fit."""

    def exits(self, model: Any, layers: int) -> Exits:
        """What is trained besides the model: nothing, and its own head answers at every depth."""
        return Exits(Shape(model.config.get_text_config().hidden_size, 0, layers), heads=False)

    def settings(self, layers: int) -> dict[str, Any]:
        """Knobs with which the method that made the exits (`Exits.made_by`) decodes by them."""
        return {}

    def keep(self, exits: Exits, folder: Path) -> None:
        """Writes what was trained beside a frozen model in a form of its own, where no method made the exits. Raises CheckpointError where
        there is nothing."""
        raise CheckpointError(f"{type(self).__module__.rpartition('.')[2]} trains the model itself: there is nothing beside it to keep.")
