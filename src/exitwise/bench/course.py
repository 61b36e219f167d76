"""A user's folder as a course of training: batches of a task, and the layer-wise loss on them; `exitwise train` is this and the plain loop.

The model is a unified encoder-decoder that takes pixels and text and hands out every decoder layer's state (the built-in one does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from exitwise import families
from exitwise.errors import FamilyError, InputError
from exitwise.models.ofa.images import nearest_grid
from exitwise.train import layerwise
from exitwise.train.losses import IGNORED, Weights

from .tasks import Item, Task


@dataclass(frozen=True)
class Lesson:
    """One batch: what `forward` takes, and the labels, -100 where nothing is asked."""

    inputs: dict[str, Tensor]
    labels: Tensor


class Course:
    """Batches of `rows` items, drawn anew for every step from the seed, so that a resumed run sees what an unbroken one would."""

    def __init__(
        self, task: Task, processor: Any, rows: int = 16, seed: int = 0, weights: Weights = "uniform", smoothing: float | None = None
    ) -> None:
        if rows < 1:
            raise InputError(f"A batch of {rows} rows is empty. Give 1 or more.")
        self.task, self.processor, self.rows, self.seed, self.weights = task, processor, rows, seed, weights
        self.smoothing = (0.1 if task.kind == "caption" else 0.0) if smoothing is None else smoothing

    def batch(self, step: int) -> Lesson:
        """The batch of a step."""
        draw = Random(f"{self.seed}-{step}")
        return self.lesson([draw.choice(self.task.items) for _ in range(self.rows)], draw)

    def lesson(self, items: list[Item], draw: Random) -> Lesson:
        """These items with one reference each. Images of unlike shapes share the first one's grid."""
        pictures, prompts = [item.picture() for item in items], [item.prompt for item in items]
        grid = nearest_grid(*pictures[0].size, self.processor.image_grids)
        inputs = dict(self.processor(images=pictures, text=prompts, grid=grid))
        spoken = [draw.choice(item.references) for item in items]
        inputs["decoder_input_ids"], labels = self._targets(items, spoken)
        return Lesson(inputs, labels)

    def _targets(self, items: list[Item], spoken: list[str]) -> tuple[Tensor, Tensor]:
        """Decoder inputs and labels, padded on the right: bos + caption, or bos + prompt + answer with its loss on answer and end."""
        tokenizer = self.processor.tokenizer
        rows = []
        for item, text in zip(items, spoken, strict=True):
            prompt = [] if self.task.kind == "caption" else self.processor.tokens([item.prompt])[0]
            answer = [*self.processor.tokens([text])[0], tokenizer.eos_token_id]
            rows.append(([tokenizer.bos_token_id, *prompt, *answer[:-1]], [*[IGNORED] * len(prompt), *answer]))
        longest = max(len(given) for given, _ in rows)
        given = torch.full((len(rows), longest), tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), IGNORED)
        for place, (tokens, wanted) in enumerate(rows):
            given[place, : len(tokens)], labels[place, : len(wanted)] = torch.tensor(tokens), torch.tensor(wanted)
        return given, labels

    def objective(self, model: nn.Module, lesson: Lesson) -> Mapping[str, Tensor]:
        """The layer-wise loss of a batch."""
        name, family = families.of(model)
        if family.readout is None:
            raise FamilyError(f"The family {name!r} has no read-out, so its layers cannot answer for themselves. Give the family one.")
        out = model(**lesson.inputs, output_hidden_states=True, use_cache=False)
        readout = family.readout
        return {
            "loss": layerwise(
                out.decoder_hidden_states[1:],
                lambda hidden: readout(model, hidden),
                lesson.labels,
                smoothing=self.smoothing,
                weights=self.weights,
                reduction="mean",
            )
        }

    def validate(self, model: nn.Module, batches: int = 8) -> Mapping[str, float]:
        """Mean loss of the first items, in order."""
        items = list(self.task.items)[: batches * self.rows]
        losses = [
            float(self.objective(model, self.lesson(items[i : i + self.rows], Random(0)))["loss"]) for i in range(0, len(items), self.rows)
        ]
        return {"loss": sum(losses) / len(losses)}
