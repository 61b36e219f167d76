"""Training exits: a base and its exits as one module, batches with labels, and the losses that several methods' objectives are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exitwise.errors import FamilyError, InputError
from exitwise.heads import Exits, Said, state_at
from exitwise.stack import Family, Stack

from .losses import IGNORED


@dataclass(frozen=True)
class Labelled:
    """One batch: what `forward` takes (without labels), labels, and the number of the training step, for objectives that alternate.

    labels: (rows,) class numbers, or floats for a head with one class; for a decoder (rows, tokens), -100 where nothing is asked.
    """

    inputs: Mapping[str, Any]
    labels: Tensor
    step: int = 0


@dataclass
class Walked:
    """What one pass of the base gave: the state after every layer, (rows, tokens, width) each, the model's own output, and the mask
    (rows, tokens) that it was given."""

    states: list[Tensor] = field(default_factory=list)
    out: Any = None
    mask: Tensor | None = None


class Learner(nn.Module):
    """A base and its exits as one module to train. frozen: the base keeps its weights, runs in evaluation mode and without gradients."""

    def __init__(self, model: nn.Module, family: Family, exits: Exits, frozen: bool) -> None:
        super().__init__()
        self.model, self.family, self.exits, self.frozen = model, family, exits, frozen
        stacks = family.stacks_of(model)
        self.stack: Stack = next((s for s in stacks if s.kind == "decoder"), stacks[-1])
        model.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def walk(self, inputs: Mapping[str, Any]) -> Walked:
        """One pass of the base at full depth, with the state after every layer."""
        walked = Walked(mask=inputs.get("attention_mask"))

        def see(_: Any, __: Any, out: Any) -> None:
            walked.states.append(out[0] if isinstance(out, tuple) else out)

        hooks = [layer.register_forward_hook(see) for layer in dict.fromkeys(self.stack.layers(self.model))]
        try:
            with torch.no_grad() if self.frozen else nullcontext():
                walked.out = self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return walked

    def read(self, state: Tensor) -> Tensor:
        """What the model's own head says of a state."""
        if self.family.readout is None:
            raise FamilyError(f"Nothing reads a state of {type(self.model).__name__}. Give its family a `readout`, or exits with heads.")
        return self.family.readout(self.model, state)

    def tokens(self, walked: Walked) -> list[Tensor]:
        """(rows, width) for each exit 1..n-1: what it reads."""
        place = self.exits.place(walked.mask)
        return [state_at(state, place) for state in walked.states[:-1]]

    def spread(self, inputs: Mapping[str, Any]) -> float:
        """How much the state that is read differs between rows: its standard deviation over its mean size, at the exit where least."""
        with torch.no_grad():
            tokens = [token.float() for token in self.tokens(self.walk(inputs))]
        return min(float(token.std(0).mean() / token.abs().mean()) for token in tokens)

    def said(self, walked: Walked) -> list[Said]:
        """What the exits 1..n-1 of a classifier say."""
        tokens = self.tokens(walked)
        if self.exits.ramps is not None:
            memory: dict[str, Tensor] = {}
            spoken = [self.exits.ramps(layer, token, memory) for layer, token in enumerate(tokens, 1)]
            return [Said(token, self.read(token[:, None])[:, 0]) for token in spoken]
        if len(self.exits.heads):
            return [head(token) for head, token in zip(self.exits.heads, tokens, strict=True)]
        return [Said(token, self.read(state)) for token, state in zip(tokens, walked.states[:-1], strict=True)]

    def answers(self, walked: Walked) -> list[Tensor]:
        """Logits (rows, classes) of every exit of a classifier, 1..n; those of depth n are the model's own."""
        return [*(said.logits for said in self.said(walked)), walked.out.logits]


class Written(Learner):
    """The same for a decoder whose exits have ramps: every token that is asked is a row of its own. Batches come through `asked`."""

    def walk(self, inputs: Mapping[str, Any]) -> Walked:
        """One pass of the base; states (tokens, 1, width) and logits (tokens, vocabulary) of the tokens that inputs['asked'] marks."""
        given = dict(inputs)
        mask = given.pop("asked")
        walked = super().walk(given)
        return Walked([state[mask][:, None] for state in walked.states], SimpleNamespace(logits=walked.out.logits[mask]))

    @staticmethod
    def asked(batch: Labelled) -> Labelled:
        """A batch with labels (rows, tokens) as one of tokens: those that are not asked are out of the labels."""
        mask = batch.labels != IGNORED
        return Labelled({**batch.inputs, "asked": mask}, batch.labels[mask], batch.step)


Objective = Callable[[Learner, Labelled], Mapping[str, Tensor]]


def each_loss(answers: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(rows, exits) losses: cross-entropy, or the squared error of a head with one class. Raises InputError for labels that do not fit."""
    classes = answers[-1].shape[-1]
    if labels.dim() != 1 or len(labels) != len(answers[-1]):
        raise InputError(f"Labels of shape {tuple(labels.shape)} do not fit {len(answers[-1])} rows. Give one label for each row.")
    if classes == 1:
        return torch.stack([F.mse_loss(logits[:, 0].float(), labels.float(), reduction="none") for logits in answers], 1)
    if labels.is_floating_point() or labels.dtype == torch.bool or not bool(((labels >= 0) & (labels < classes)).all()):
        given = sorted({round(float(v), 6) for v in labels})
        raise InputError(f"Labels {given[:8]} do not fit a head of {classes} classes. Allowed: the whole numbers 0..{classes - 1}.")
    return torch.stack([F.cross_entropy(logits.float(), labels, reduction="none") for logits in answers], 1)


def answer_losses(answers: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(exits,) mean over the rows of `each_loss`."""
    return each_loss(answers, labels).mean(0)


def weighed_by_depth(losses: Tensor) -> Tensor:
    """sum_j j * loss_j / sum_j j over exits 1..n, a scalar (PABEE, CALM)."""
    weights = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    return (weights * losses).sum() / weights.sum()
