"""A language model as teacher: what its frozen states say of each text, by one linear map, for a small encoder to learn beside the labels.

A classifier of 22 M parameters that learns SST-2 from labels makes the errors that its words make; a language model that has read a
thousand times as much makes others. Its states after two thirds of its layers, the mean of the tokens and the last one, are read once;
logistic regression on them is the teacher. Soft targets after Hinton et al. 2015, arXiv:1503.02531.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from exitwise.bench.texts import Encoded, Example
from exitwise.train.exits import Labelled

Encode = Callable[[Sequence[Example]], Encoded]

SHARE = 2 / 3  # of the layers: of SST-2's held-out sentences, Gemma 3 270M's states after 12 of 18 layers told most
ROWS, CHUNK = 32, 2048
LEAST = 6  # words of a text that the teacher is asked about
TRUST = 0.7  # in the teacher, the rest in the label
PENALTIES = (3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Probe:
    """A linear map of states that were brought to mean 0 and spread 1."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    spread: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """(rows,) log-odds of the second class."""
        return ((states.float() - self.mean) / self.spread) @ self.weight + self.bias


class Reader:
    """A language model cut after `SHARE` of its layers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.layers = self.model.layers[: round(SHARE * len(self.model.layers))]
        self.model.norm = nn.Identity()

    @torch.no_grad()
    def states(self, texts: Sequence[str], longest: int) -> Tensor:
        """(texts, 2 * width) in half precision: the mean of the tokens' states but the first, and the last token's."""
        ids = [self.tokenizer(f"{text} ")["input_ids"][:longest] for text in texts]
        made: list[Tensor | None] = [None] * len(ids)
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        for start in range(0, len(order), ROWS):
            places = order[start : start + ROWS]
            lengths = torch.tensor([len(ids[place]) for place in places])
            padded = nn.utils.rnn.pad_sequence([torch.tensor(ids[place]) for place in places], batch_first=True)
            slots = torch.arange(padded.shape[1])
            mask = (slots < lengths[:, None]).long()
            found = self.model(input_ids=padded, attention_mask=mask).last_hidden_state
            counted = (mask * (slots > 0))[..., None]
            both = torch.cat(((found * counted).sum(1) / counted.sum(1).clamp(min=1), found[torch.arange(len(places)), lengths - 1]), 1)
            for place, row in zip(places, both.half()):
                made[place] = row
        return torch.stack([row for row in made if row is not None])


def states(folder: Path, rows: Sequence[Example], longest: int, kept: Path) -> Tensor:
    """What the reader says of these rows, kept chunk by chunk, so that a run that was stopped goes on."""
    kept.mkdir(parents=True, exist_ok=True)
    reader, parts = None, []
    for start in range(0, len(rows), CHUNK):
        file = kept / f"{start:06d}.safetensors"
        if not file.exists():
            reader = reader or Reader(folder)
            some = [row.first if row.second is None else f"{row.first} {row.second}" for row in rows[start : start + CHUNK]]
            save_file({"states": reader.states(some, longest)}, str(file) + ".part")
            Path(str(file) + ".part").replace(file)
            print(f"{kept.name}: {min(start + CHUNK, len(rows))} of {len(rows)} texts read", file=sys.stderr, flush=True)
        parts.append(load_file(file)["states"])
    return torch.cat(parts)


def fitted(states: Tensor, labels: Sequence[int], held: Tensor, held_labels: Sequence[int]) -> tuple[Probe, float]:
    """(the probe whose penalty is the best on the held rows, its accuracy there in percent)."""
    mean, spread = states.float().mean(0), states.float().std(0) + 1e-6
    scaled, target, found = (states.float() - mean) / spread, torch.tensor(labels).float(), list[tuple[float, Probe]]()
    for penalty in PENALTIES:
        weight, bias = torch.zeros(scaled.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
        steps = torch.optim.LBFGS([weight, bias], max_iter=60, history_size=10)

        def loss(weight: Tensor = weight, bias: Tensor = bias, penalty: float = penalty) -> Tensor:
            made: Tensor = F.binary_cross_entropy_with_logits(scaled @ weight + bias, target) + penalty * weight.square().sum()
            weight.grad = bias.grad = None
            made.backward()  # type: ignore[no-untyped-call]
            return made

        steps.step(loss)  # type: ignore[arg-type]
        probe = Probe(weight.detach(), bias.detach(), mean, spread)
        right = ((probe(held) > 0).long() == torch.tensor(held_labels)).float().mean()
        found.append((100 * float(right), probe))
    best = max(found, key=lambda pair: pair[0])
    return best[1], best[0]


class Lesson:
    """What a teacher thinks of the rows of at least `LEAST` words, which only this asks for. teacher: folder of the language model; kept:
    where its states are kept."""

    def __init__(
        self, teacher: Path, examples: Sequence[Example], held: Sequence[Example], encode: Encode, longest: int, kept: Path
    ) -> None:
        self.teacher, self.held, self.longest, self.kept = teacher, held, longest, kept
        self.examples = [row for row in examples if len(row.first.split()) >= LEAST]
        self.rows = encode(self.examples)

    @cached_property
    def targets(self) -> Tensor:
        """(rows,) the probability of the second class: the label's, and the teacher's."""
        labels, checked = [row.label for row in self.examples], [row.label for row in self.held]
        learn = states(self.teacher, self.examples, self.longest, self.kept / "train")
        probe, right = fitted(learn, labels, states(self.teacher, self.held, self.longest, self.kept / "held"), checked)
        print(f"the teacher is right in {right:.1f} % of the held rows", file=sys.stderr, flush=True)
        return TRUST * torch.sigmoid(probe(learn)) + (1 - TRUST) * torch.tensor(labels)

    def batches(self, size: int, seed: int) -> Callable[[int], Labelled]:
        """The batch of a training step."""
        targets = self.targets

        def batch(step: int) -> Labelled:
            places = self.rows.drawn(step, size, seed)
            return Labelled(self.rows.batch(places)[0], targets[places], step)

        return batch
