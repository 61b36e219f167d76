"""Losses of exits that read tokens: a part of the logits is in memory at a time, whatever the vocabulary and however many exits there
are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from exitwise.train.losses import IGNORED

Read = Callable[[Tensor], Tensor]  # (n, 1, width) -> (n, 1, vocabulary)


def next_tokens(ids: Tensor, asked: Tensor) -> Tensor:
    """Labels (rows, tokens) for states of the same tokens: what follows each, -100 where that is not asked (rows, tokens) or there is
    nothing.

    >>> next_tokens(torch.tensor([[5, 6, 7]]), torch.tensor([[False, False, True]]))
    tensor([[-100,    7, -100]])
    """
    following = torch.where(asked, ids, IGNORED)[:, 1:]
    return F.pad(following, (0, 1), value=IGNORED)


def token_loss(states: Tensor, targets: Tensor, read: Read, chunk: int = 512) -> Tensor:
    """Mean cross-entropy of states (n, width) to targets (n,), a scalar; `chunk` states are read at a time and again in the backward
    pass."""
    total = states.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(torch.split(states, chunk), torch.split(targets, chunk)):
        total = total + _again(lambda s, t: F.cross_entropy(read(s[:, None])[:, 0].float(), t, reduction="sum"), part, wanted)
    return total / len(targets)


def law_loss(states: Tensor, taught: Tensor, read: Read, teach: Read, chunk: int = 512) -> Tensor:
    """Mean of -sum_v p(v) log q(v), a scalar: q = softmax(read(states)), p = softmax(teach(taught)) without a gradient; both (n, width).
    Kangaroo's loss (arXiv:2404.18911) on the whole vocabulary."""

    def cross(mine: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            law = teach(other[:, None])[:, 0].float().softmax(-1)
        return -(law * read(mine[:, None])[:, 0].float().log_softmax(-1)).sum()

    total = states.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(torch.split(states, chunk), torch.split(taught.detach(), chunk)):
        total = total + _again(cross, part, wanted)
    return total / len(states)


def _again(loss: Callable[[Tensor, Tensor], Tensor], states: Tensor, wanted: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return loss(states, wanted)
    value: Tensor = checkpoint(loss, states, wanted, use_reentrant=False, preserve_rng_state=False)
    return value


def exit_losses(states: Sequence[Tensor], labels: Tensor, weights: Mapping[int, float], read: Read, chunk: int = 512) -> dict[str, Tensor]:
    """{"loss": sum over depths of weight * cross-entropy, "exit N": each depth's own, detached}.

    states: after each layer, (rows, tokens, width) each; labels (rows, tokens), -100 where nothing is asked; no label at all gives 0.
    """
    asked = labels != IGNORED
    targets, total = labels[asked], states[0].new_zeros((), dtype=torch.float32)
    told: dict[str, Tensor] = {}
    for depth, weight in weights.items() if bool(asked.any()) else ():
        own = token_loss(states[depth - 1][asked], targets, read, chunk)
        told[f"exit {depth}"] = own.detach()
        total = total + weight * own
    return {"loss": total, **told}


def layer_distillation(shallow: Sequence[Tensor], deep: Sequence[Tensor]) -> Tensor:
    """Mean over shallow states of the squared error to the deep state that is nearest to each at this step, which gets no gradient; a
    scalar (Bae et al. 2023, FREE, arXiv:2310.05424)."""
    losses = []
    for mine in shallow:
        distances = torch.stack([(mine - other.detach()).square().mean() for other in deep])
        losses.append(distances.min())
    return torch.stack(losses).mean()
