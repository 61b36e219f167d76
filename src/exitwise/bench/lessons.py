"""Batches to train exits on: a classifier's texts, and what a unified model is to say of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..train.exits import Labelled
from ..train.recipe import Recipe
from .ask import Asker
from .course import Course
from .items import Item
from .tasks import Task
from .texts import Encoded, Example

ROWS = 32


def of_texts(rows: Encoded, seed: int = 0) -> Callable[[int], Labelled]:
    """Rows of like length, each once an epoch."""

    def batch(step: int) -> Labelled:
        inputs, labels = rows.batch(rows.drawn(step, ROWS, seed))
        return Labelled(inputs, labels, step)

    return batch


def of_pictures(asker: Asker, task: Task, seed: int = 0, tick: Callable[[], None] = lambda: None) -> Callable[[int], Labelled]:
    """What is to be said after the prompt, word by word; the stem runs once for each picture, now. The items must share a grid.

    Items of the most frequent grid are taken, the others left out.
    """
    asked = asker.prepare(task.items, tick)
    grids = [one.grid for one in asked]
    usual = max(set(grids), key=grids.count)
    kept = [one for one in asked if one.grid == usual]
    features = {one.item.where: one.features for one in kept}

    def look(items: Sequence[Item]) -> dict[str, Tensor]:
        return {"image_features": torch.cat([features[item.where] for item in items])}

    course = Course(Task(task.kind, task.file, tuple(one.item for one in kept)), asker.processor, Recipe(rows=ROWS), seed, look=look)

    def batch(step: int) -> Labelled:
        lesson = course.batch(step)
        inputs: dict[str, Any] = {**lesson.inputs, "use_cache": False}
        return Labelled(inputs, lesson.labels, step)

    return batch


def digest(rows: Sequence[Example | Item]) -> str:
    """Twelve letters that tell these rows from others."""
    seen = hashlib.sha256()
    for row in rows:
        told = (row.name, row.prompt, row.references) if isinstance(row, Item) else (row.first, row.second, row.label)
        seen.update(repr(told).encode())
    return seen.hexdigest()[:12]
