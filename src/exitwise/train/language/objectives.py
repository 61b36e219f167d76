"""What language models are trained on for early exits, as objectives for the plain loop: each is made once, with its options, for one
model.

An objective takes (learner, batch): `train.exits.Learner` and `Labelled`, whose labels (rows, tokens) stand at the states that say them
(`losses.next_tokens`), and whose step is the number of the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from exitwise.errors import KnobError
from exitwise.train.exits import Labelled, Learner, Objective, Walked
from exitwise.train.losses import IGNORED

from . import noise, weights
from .losses import exit_losses, law_loss, layer_distillation, token_loss


def _figures(learner: Learner, walked: Walked, batch: Labelled, shares: Mapping[int, float]) -> dict[str, Tensor]:
    return exit_losses(walked.states, batch.labels, shares, learner.read)


def weighed(shares: Callable[[int], Mapping[int, float]]) -> Objective:
    """The exits' losses with the weights of a step: sorted sub-models, CALM's rising weights, EE-LLM's constants on a trained base."""
    return lambda learner, batch: _figures(learner, learner.walk(batch.inputs), batch, shares(batch.step))


def layers_dropped(shares: Callable[[int], Mapping[int, float]], rates: Callable[[int], list[float]]) -> Objective:
    """`weighed`, while each row leaves each layer out with the step's chance for it, in training mode alone: LayerSkip."""

    def objective(learner: Learner, batch: Labelled) -> Mapping[str, Tensor]:
        layers = learner.stack.layers(learner.model)
        chances = rates(batch.step) if learner.training else [0.0] * len(layers)
        with noise.left_out(layers, noise.kept_rows(chances, len(batch.labels), batch.labels.device)):
            walked = learner.walk(batch.inputs)
        return _figures(learner, walked, batch, shares(batch.step))

    return objective


def shallow_and_deep(shallow: int, layers: int, distil: float) -> Objective:
    """Two exits, and the shallow layers' states drawn to the nearest of the deep ones: FREE. distil: weight of the latter (alpha)."""
    shares = weights.two_exits(shallow, layers)

    def objective(learner: Learner, batch: Labelled) -> Mapping[str, Tensor]:
        walked = learner.walk(batch.inputs)
        told, asked = _figures(learner, walked, batch, shares), batch.labels != IGNORED
        if not distil or not bool(asked.any()):
            return told
        states = [state[asked] for state in walked.states]
        drawn = layer_distillation(states[:shallow], states[shallow:])
        return {**told, "loss": told["loss"] + distil * drawn, "distilled": drawn.detach()}

    return objective


def generated_positions(labels: Tensor) -> Tensor:
    """(rows, tokens): 0 at the first state that is asked for a token, below 0 before it.

    >>> generated_positions(torch.tensor([[-100, -100, 7, 8], [5, 6, -100, -100]]))
    tensor([[-2, -1,  0,  1],
            [ 0,  1,  2,  3]])
    """
    first = (labels != IGNORED).int().argmax(1, keepdim=True)
    return torch.arange(labels.shape[1], device=labels.device)[None] - first


def scheduled(layers: int, most: int, least: int, length: int, warm: int = 1) -> Objective:
    """The last exit's loss under a schedule of layers by position, in training as in use: SkipDecode. Positions as
    `generated_positions`."""
    noise.scheduled_layers(0, layers, most, least, length, warm)  # refuses what cannot be

    def objective(learner: Learner, batch: Labelled) -> Mapping[str, Tensor]:
        masks = noise.scheduled_masks(generated_positions(batch.labels), layers, most, least, length, warm)
        with noise.left_out(learner.stack.layers(learner.model), masks):
            walked = learner.walk(batch.inputs)
        return _figures(learner, walked, batch, {layers: 1.0})

    return objective


def tuned_exits(early: Mapping[int, float], warmup: int = 0) -> Objective:
    """The losses of exits with parts of their own, `exits.ramps`, before the model's head; the base is frozen: EE-Tuning."""

    def objective(learner: Learner, batch: Labelled) -> Mapping[str, Tensor]:
        asked = batch.labels != IGNORED
        shares = weights.warmed(len(learner.stack.layers(learner.model)), early, batch.step, warmup)
        walked, told = learner.walk(batch.inputs), dict[str, Tensor]()
        total = walked.states[0].new_zeros((), dtype=torch.float32)
        for depth in early if bool(asked.any()) else ():
            assert learner.exits.ramps is not None
            given = learner.exits.ramps(depth, walked.states[depth - 1][asked], {})
            own = token_loss(given, batch.labels[asked], learner.read)
            told[f"exit {depth}"] = own.detach()
            total = total + shares[depth] * own
        return {"loss": total, **told}

    return objective


def drafted(depth: int, part: str = "adapter") -> Objective:
    """An adapter after `depth` layers of a frozen base learns the full model's law at the same positions: Kangaroo.

    `learner.exits.parts[part]` takes (states, positions) and returns, first, what the model's head reads without the model's last norm.
    """

    def objective(learner: Learner, batch: Labelled) -> Mapping[str, Tensor]:
        if not learner.frozen:
            raise KnobError("A drafter is trained on what a frozen model says. Make the learner with frozen=True.")
        model, asked = learner.model, batch.labels != IGNORED
        walked = learner.walk(batch.inputs)
        positions = torch.arange(asked.shape[1], device=asked.device)[None].expand_as(asked)
        states = learner.exits.parts[part](walked.states[depth - 1], positions)[0][asked]
        if not len(states):
            return {"loss": states.sum()}
        head = model.get_output_embeddings()  # type: ignore[operator]
        return {"loss": law_loss(states, walked.states[-1][asked], head, learner.read)}

    return objective
