"""Stage two as a course: captions are written, judged by CIDEr-D, and learnt from; the layer-wise loss goes on beside it with a weight.

For the built-in unified model, whose encoder's row may serve several rows of its decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from exitwise.errors import InputError
from exitwise.train.recipe import Recipe
from exitwise.train.reward import rewarded, taught, write

from .course import Course, Lesson, Look, device_of
from .metrics import CiderScorer
from .pictures import Source
from .tasks import Task

END = " endofcaption"  # judged like a word, as in OFA's training: or a text that stops in mid-phrase would cost nothing
SCALE = 100.0  # from the scorer's figures to CIDEr's usual 0 to 10


class Judge:
    """CIDEr-D of texts for the items of a task, 0 to 10, with the document frequencies of that task. Items with the same image (a file with
    one caption a row) are judged by all its captions."""

    def __init__(self, task: Task) -> None:
        captions: dict[Source, list[str]] = {}
        for item in task.items:
            captions.setdefault(item.image, []).extend(f"{text.rstrip(' .')}{END}" for text in item.references)
        numbers = {image: number for number, image in enumerate(captions)}
        self.places = [numbers[item.image] for item in task.items]
        self.scorer = CiderScorer(list(captions.values()))

    def __call__(self, text: str, ended: bool, place: int) -> float:
        """ended: whether the text came to its end, or was cut. place: of the item in the task."""
        return self.scorer.score(f"{text.strip()}{END if ended else ''}", self.places[place]) / SCALE


class Rewarded(Course):
    """Batches of images; each epoch visits every image once, with one of its own captions for the loss beside the reward."""

    def __init__(
        self,
        task: Task,
        processor: Any,
        recipe: Recipe | None = None,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        look: Look | None = None,
    ) -> None:
        if task.kind != "caption":
            raise InputError(f"A reward is for captions; the task is {task.kind}. Choose a recipe without one.")
        super().__init__(task, processor, recipe, seed, share, look)
        self.judge = Judge(task)
        self.of_item: list[list[int]] = [[] for _ in task.items]
        for index, (place, _) in enumerate(self.texts):
            self.of_item[place].append(index)

    def visits(self) -> int:
        """How many rows an epoch has: the images."""
        return len(self.of_item)

    def pick(self, visit: int, number: int) -> int:
        """One of the image's texts."""
        return Random(f"{self.seed}-{number}-{visit}").choice(self.of_item[visit])

    def objective(self, model: nn.Module, lesson: Lesson) -> Mapping[str, Tensor]:
        """The self-critical loss of captions that the model writes now, and the layer-wise loss of one true caption, with its weight."""
        lesson = lesson.to(device_of(model))
        recipe: Any = self.recipe
        told = {name: value for name, value in lesson.inputs.items() if name != "decoder_input_ids"}
        ids = write(model, told, recipe.samples, recipe.longest, recipe.search, recipe.temperature)
        worth = self.worth(ids, lesson.places)
        encoded = {
            "encoder_outputs": model.get_encoder()(**told),  # type: ignore[operator]
            "attention_mask": told["attention_mask"],
        }
        given, labels = taught(ids, *self._marks())
        states = self.states(model, {**encoded, "decoder_input_ids": given})
        loss = rewarded(states, self.readout(model), labels, worth, weights=recipe.reward_weights, lean=recipe.lean)
        figures = {"reward": worth.mean()}
        if recipe.ce_weight:
            states = self.states(model, {**encoded, "decoder_input_ids": lesson.inputs["decoder_input_ids"]})
            figures["cross_entropy"] = self.cross_entropy(model, states, lesson)
            loss = loss + recipe.ce_weight * figures["cross_entropy"]
        return {"loss": loss, **figures}

    def worth(self, ids: Tensor, places: Sequence[int]) -> Tensor:
        """CIDEr-D of written texts, (images, texts of each); ids as `train.reward.write` gives them."""
        end, times = self._marks()[1], len(ids) // len(places)
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        ended = (ids == end).any(1).tolist()
        judged = [self.judge(text, whole, places[row // times]) for row, (text, whole) in enumerate(zip(texts, ended, strict=True))]
        return torch.tensor(judged, device=ids.device).view(len(places), times)

    def _marks(self) -> tuple[int, int, int]:
        """Start, end and pad."""
        tokenizer = self.processor.tokenizer
        return tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def validate(self, model: nn.Module, batches: int = 32) -> Mapping[str, float]:
        """CIDEr-D of greedy captions for the first images, on the scale of 100 times the usual; the loss is its negative."""
        rows = self.recipe.rows
        chosen = [texts[0] for texts in self.of_item[: batches * rows]]
        points: list[float] = []
        for start in range(0, len(chosen), rows):
            lesson = self.lesson(chosen[start : start + rows]).to(device_of(model))
            told = {name: value for name, value in lesson.inputs.items() if name != "decoder_input_ids"}
            points += self.worth(write(model, told, longest=self.recipe.longest), lesson.places).flatten().tolist()
        cider = SCALE * sum(points) / len(points)
        return {"loss": -cider, "cider": cider}
