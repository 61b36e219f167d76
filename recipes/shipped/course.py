"""The batches of every step of the training, their loss, and how the model is judged on the way."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from data import EOS, Captions, Questions, Sentences, splits
from scenes import KINDS
from streams import Batch, Memory, decoder_states, remember
from torch import Tensor, nn

from exitwise.models.ofa import OFAForConditionalGeneration
from exitwise.train import agreement, layer_weights, layerwise, sampled_weights


class Taught(nn.Module):
    """The model in training, with what is not shipped: a linear head that says from each image token what lies there, and the two figures
    that read a cosine of consecutive states as a chance."""

    def __init__(self, model: OFAForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.cells = nn.Linear(model.config.d_model, len(KINDS))
        nn.init.constant_(self.cells.bias, -4.5)  # the log of how seldom a kind of item is in a cell
        self.scale, self.centre = nn.Parameter(torch.tensor(20.0)), nn.Parameter(torch.tensor(0.93))

    def items(self, memory: Memory, cells: Tensor) -> Tensor:
        """Poisson loss of the counts of items in each cell, a scalar: per item, not per cell, since most cells are empty."""
        rates = self.cells(memory.states[:, : cells.shape[1]])
        return F.poisson_nll_loss(rates, cells, reduction="sum") / cells.sum().clamp(min=1)


class Course:
    """Which batch comes at which step, and how it is judged."""

    def __init__(self, encode: Any, plan: Mapping[str, Any], seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.captions, self.sentences, self.questions = (
            Captions(encode, crops=int(plan.get("crops", 0))),
            Sentences(encode),
            Questions(encode),
        )
        self.heldout = Captions(encode, "dev", [str(name) for name in splits()["flickr8k"]["validation"]])
        self.held_sentences = Sentences(encode, held=True)
        self.cycle: list[str] = list(plan["cycle"])

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same step."""
        state = PartialState()
        draw = Random(f"{self.seed}-{step}-{state.process_index}")
        kind = self.cycle[step % len(self.cycle)]
        images = int(self.plan["images" if kind == "caption" else "pictures"]) // state.num_processes
        if kind == "caption":
            batch = self.captions.batch(draw, images)
        elif kind == "questions":
            batch = self.questions.batch(draw, images, int(self.plan["sentences"]))
        else:
            batch = self.sentences.batch(draw, images, int(self.plan["sentences"]))
        return replace(batch, kind=kind, depths=self.depths(step))

    def planned(self, name: str, kind: str) -> Any:
        """What the plan says for batches of this kind: a table names kinds, anything else holds for all. None: not planned."""
        value = self.plan.get(name)
        return value.get(kind) if isinstance(value, Mapping) else value

    def weights(self, kind: str, layers: int) -> list[float]:
        """The weights of the layers' losses for batches of this kind: a name that `layer_weights` knows, or one figure per layer."""
        planned = self.planned("weights", kind)
        return layer_weights(layers, planned) if isinstance(planned, str) else list(planned)

    def depths(self, step: int) -> tuple[int, int] | None:
        """How deep image and text walk the encoder in this step, the same in all processes; None where the plan does not cut."""
        drawn = self.planned("drawn", self.cycle[step % len(self.cycle)])
        if drawn is None:
            return None
        image, text = (Random(f"{self.seed}-{step}-{stream}").choice(among) for stream, among in enumerate(drawn))
        return image, text

    def objective(self, taught: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """The layer-wise loss; captions read out the last layer and some others, drawn anew, weighted to the same expectation.

        Where the scene is known, the image's last states also learn what lies where: counting cannot be learnt from answers alone in hours.
        """
        assert isinstance(taught, Taught)
        model = taught.model
        memory = remember(model, batch, batch.decoder_input.shape[1])
        states = decoder_states(model, batch, memory)
        layers, others = len(states), int(self.plan["caption_layers"]) - 1
        weights = self.weights(batch.kind, layers)
        if batch.kind == "caption" and others < layers - 1:
            generator = torch.Generator().manual_seed(random.Random(int(batch.decoder_input.sum())).getrandbits(40))
            weights = [drawn * own for drawn, own in zip(sampled_weights(layers, others, generator), weights, strict=True)]
        smoothing = 0.1 if batch.kind == "caption" else 0.0
        loss = layerwise(states, model.readout, batch.labels, smoothing=smoothing, weights=weights, reduction="mean")
        sure = self.sure(taught, batch.kind, states, batch.labels)
        if batch.cells is None:
            return {"loss": loss + sure, batch.kind: loss, "sure": sure}
        items = taught.items(memory, batch.cells)
        return {"loss": loss + sure + float(self.plan["items"]) * items, batch.kind: loss, "sure": sure, "items": items}

    def sure(self, taught: Taught, kind: str, states: list[Tensor], labels: Tensor) -> Tensor:
        """The loss of `train.agreement` with its planned weight, at the answer alone or at all words of a caption."""
        share = self.planned("sure", kind)
        if not share:
            return labels.new_zeros((), dtype=torch.float32)
        asked = labels.ne(-100) if kind in ("caption", "reward", "imitate") else labels.ne(-100) & labels.ne(EOS)
        return share * agreement(states, taught.model.readout, asked, taught.scale, taught.centre)

    def validate(self, taught: nn.Module) -> Mapping[str, float]:
        """Cross-entropy of held captions, and accuracy on held pictures with human and with made sentences, at full depth."""
        assert isinstance(taught, Taught)
        model = taught.model
        names = self.heldout.names
        losses = []
        for start in range(0, len(names), 50):
            part = names[start : start + 50]
            batch = self.heldout.of(part, self.heldout.sets * len(part), [self.heldout.ids[name][:2] for name in part])
            losses.append(float(layerwise(decoder_states(model, batch)[-1:], model.readout, batch.labels)))
        draw = Random(0)
        made = [self.held_sentences.batch(draw, 32) for _ in range(4)]
        caption = sum(losses) / len(losses)
        human = accuracy(model, self.held_sentences.human_batches())
        return {"loss": caption, "nlvr": human, "made": accuracy(model, made)}


def accuracy(model: OFAForConditionalGeneration, batches: Iterable[Batch]) -> float:
    """Share of right answers at full depth, among all tokens, in 0..1."""
    right = total = 0
    for batch in batches:
        asked = batch.labels.ne(-100).float().argmax(-1)  # the place of the answer
        rows = torch.arange(len(asked))
        said = model.readout(decoder_states(model, batch)[-1][rows, asked]).argmax(-1)
        right += int((said == batch.labels[rows, asked]).sum())
        total += len(asked)
    return right / total
