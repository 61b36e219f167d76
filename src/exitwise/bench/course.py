"""A user's data as a course of training: batches of a task, and the layer-wise loss on them; `exitwise train` is this and the plain loop.

The model is a unified encoder-decoder that takes pixels and text and hands out every decoder layer's state (the built-in one does).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from exitwise import families
from exitwise.errors import FamilyError, InputError
from exitwise.models.ofa.images import nearest_grid
from exitwise.models.ofa.trie import Trie
from exitwise.train import layerwise
from exitwise.train.losses import IGNORED
from exitwise.train.recipe import Recipe

from .tasks import Item, Task

Look = Callable[[Sequence[Item]], dict[str, Tensor]]
_UNPOINTED = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Lesson:
    """One batch: what `forward` takes, and the labels, -100 where nothing is asked. allowed: for each label that counts, the tokens that
    compete (none: all). number: of the batch."""

    inputs: dict[str, Tensor]
    labels: Tensor
    allowed: tuple[tuple[int, ...], ...] = ()
    number: int = 0
    places: tuple[int, ...] = ()  # of the items in the task

    def to(self, device: torch.device) -> Lesson:
        """The same with its tensors there."""
        return replace(self, inputs={name: value.to(device) for name, value in self.inputs.items()}, labels=self.labels.to(device))


class Course:
    """Batches of a recipe's rows. Each epoch visits every text in an order of its own, drawn from the seed, so that a resumed run sees what
    an unbroken one would; `share` is (number of this process, how many there are), and each has rows of its own.

    look: items -> the images' part of the inputs, for features that were kept; without it pixels are read.
    """

    def __init__(
        self,
        task: Task,
        processor: Any,
        recipe: Recipe | None = None,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        look: Look | None = None,
    ) -> None:
        self.task, self.processor, self.seed, self.share = task, processor, seed, share
        self.recipe = recipe or Recipe()
        self.look = look or self._pixels
        caption = task.kind == "caption"
        self.smoothing = (0.1 if caption else 0.0) if self.recipe.smoothing is None else self.recipe.smoothing
        self.accumulate = self.recipe.accumulate(share[1])
        self.texts = self._texts()
        self._orders: dict[int, list[int]] = {}
        self._tries: dict[tuple[str, ...], Trie] = {}

    def _texts(self) -> list[tuple[int, str]]:
        """(place of the item, text) of all that can be learnt. Raises InputError for an item that leaves nothing to learn."""
        found = []
        for place, item in enumerate(self.task.items):
            learnt = [text for text in map(self.learnt, item.references) if text]
            if not learnt:
                raise InputError(f"{item.where}: nothing of {item.references[0]!r} is left to learn. Leave the row out.")
            found += [(place, text) for text in learnt]
        return found

    def learnt(self, text: str) -> str:
        """A reference as it is learnt: captions without punctuation and cut, where the recipe says so."""
        if self.task.kind != "caption":
            return text
        plain = text if self.recipe.punctuation else text.translate(_UNPOINTED)
        return plain.strip() if self.recipe.target_words is None else " ".join(plain.split()[: self.recipe.target_words])

    def batch(self, number: int) -> Lesson:
        """The batch of this number."""
        process, processes = self.share
        start = (number * processes + process) * self.recipe.rows
        count = self.visits()
        visits = [self._order(place // count)[place % count] for place in range(start, start + self.recipe.rows)]
        return self.lesson([self.pick(visit, number) for visit in visits], number)

    def visits(self) -> int:
        """How many rows an epoch has: the texts."""
        return len(self.texts)

    def pick(self, visit: int, number: int) -> int:
        """Which text a visit is about: here the texts themselves are visited."""
        return visit

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders = {kept: order for kept, order in self._orders.items() if kept == epoch - 1}
            self._orders[epoch] = list(range(self.visits()))
            Random(f"{self.seed}-{epoch}").shuffle(self._orders[epoch])
        return self._orders[epoch]

    def lesson(self, chosen: Sequence[int], number: int = 0) -> Lesson:
        """These texts (by their places among all) with their images. Images of unlike shapes share the first one's grid."""
        places, spoken = zip(*(self.texts[index] for index in chosen), strict=True)
        items = [self.task.items[place] for place in places]
        inputs = {**self.look(items), **self.processor.encode_texts([item.prompt for item in items])}
        inputs["decoder_input_ids"], labels = self._targets(items, spoken)
        return Lesson(inputs, labels, self._allowed(items, labels), number, places)

    def _pixels(self, items: Sequence[Item]) -> dict[str, Tensor]:
        pictures = [item.picture() for item in items]
        return {"pixel_values": self.processor.encode_images(pictures, nearest_grid(*pictures[0].size, self.processor.image_grids))}

    def _targets(self, items: Sequence[Item], spoken: Sequence[str]) -> tuple[Tensor, Tensor]:
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

    def _allowed(self, items: Sequence[Item], labels: Tensor) -> tuple[tuple[int, ...], ...]:
        """For each label that counts, what its item's candidates allow there; nothing where all tokens compete."""
        if not (self.recipe.constrained and items[0].candidates):
            return ()
        found: list[tuple[int, ...]] = []
        for item, row in zip(items, labels.tolist(), strict=True):
            if item.candidates not in self._tries:
                self._tries[item.candidates] = Trie(item.candidates, self.processor.tokenizer)
            said = [token for token in row if token != IGNORED]
            found += [tuple(self._tries[item.candidates].allowed(said[:place])) for place in range(len(said))]
        return tuple(found)

    def objective(self, model: nn.Module, lesson: Lesson) -> Mapping[str, Tensor]:
        """The layer-wise loss of a batch."""
        lesson = lesson.to(device_of(model))
        return {"loss": self.cross_entropy(model, self.states(model, lesson.inputs), lesson)}

    def states(self, model: nn.Module, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        """The raw output of every decoder layer. The head is left to the loss, which asks for fewer places."""
        base: Any = getattr(model, "base_model", model)
        states: Sequence[Tensor] = base(**inputs, output_hidden_states=True, use_cache=False).decoder_hidden_states[1:]
        return states

    def readout(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """What turns a layer's output into logits. Raises FamilyError where the family has nothing that does."""
        name, family = families.of(model)
        if family.readout is None:
            raise FamilyError(f"The family {name!r} has no read-out, so its layers cannot answer for themselves. Give the family one.")
        read = family.readout
        return lambda hidden: read(model, hidden)

    def cross_entropy(self, model: nn.Module, states: Sequence[Tensor], lesson: Lesson) -> Tensor:
        """The layer-wise loss over these states."""
        recipe: Any = self.recipe
        late = model.training and lesson.number // self.accumulate >= recipe.drop_worst_after
        return layerwise(
            states,
            self.readout(model),
            lesson.labels,
            smoothing=self.smoothing,
            weights=recipe.weights,
            reduction=recipe.reduction,
            allowed=_mask(lesson.allowed, model, lesson.labels),
            drop_worst=recipe.drop_worst if late else 0.0,
            lean=recipe.lean,
        )

    def validate(self, model: nn.Module, batches: int = 8) -> Mapping[str, float]:
        """Mean loss of the first texts, in order."""
        rows = self.recipe.rows
        places = range(min(len(self.texts), batches * rows))
        losses = [float(self.objective(model, self.lesson(places[i : i + rows]))["loss"]) for i in range(0, len(places), rows)]
        return {"loss": sum(losses) / len(losses)}


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first weights lie."""
    return next(model.parameters()).device


def _mask(allowed: tuple[tuple[int, ...], ...], model: Any, labels: Tensor) -> Tensor | None:
    """(labels that count, vocabulary), true where a token competes."""
    if not allowed:
        return None
    mask = torch.zeros(len(allowed), model.config.vocab_size, dtype=torch.bool, device=labels.device)
    for row, tokens in enumerate(allowed):
        mask[row, list(tokens)] = True
    return mask
