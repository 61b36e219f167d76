"""MuE's layer-wise losses: every decoder layer is read out by the shared head and answers for itself, to a label or to a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from exitwise.errors import KnobError

Weights = Literal["uniform", "linear", "avg+last", "last"]
IGNORED = -100


def layer_weights(layers: int, kind: Weights) -> list[float]:
    """One weight per layer, summing to the number of layers: equal; growing as 1..n; the mean of all plus the last, half and half;
    or the last alone, which is the plain loss."""
    if kind == "uniform":
        return [1.0] * layers
    if kind == "linear":
        return [2 * (index + 1) / (layers + 1) for index in range(layers)]
    if kind == "avg+last":
        return [0.5 + (0.5 * layers if index == layers - 1 else 0.0) for index in range(layers)]
    if kind == "last":
        return [0.0] * (layers - 1) + [float(layers)]
    raise KnobError(f"weights {kind!r} are unknown. Allowed: uniform, linear, avg+last, last.")


def layerwise(
    hidden_states: Sequence[Tensor],
    readout: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    reduction: Literal["sum", "mean"] = "sum",
    weights: Weights | Sequence[float] = "uniform",
    allowed: Tensor | None = None,
    drop_worst: float = 0.0,
    lean: bool = False,
) -> Tensor:
    """L = sum over layers of w_i * CE(readout(h_i), labels), a scalar (Tang et al. 2023, arXiv:2211.11152).

    Each CE is a mean over the labels that count. hidden_states: the raw output of each layer, (rows, tokens, d), first to last.
    labels: (rows, tokens), -100 where nothing is asked; the head is evaluated at the other places only, layer by layer.
    allowed: (vocabulary,), (labels that count, vocabulary) or (rows, tokens, vocabulary), False forbids a token (the trie of an answer
    task). "mean" divides by the sum of the weights. drop_worst: share of the labels that each layer leaves out, those with its highest
    loss, 0 to below 1. lean: only one layer's logits are in memory at a time; those of all layers but the last are computed again in the
    backward pass. No label at all gives 0.
    """
    if not 0 <= drop_worst < 1:
        raise KnobError(f"drop_worst is {drop_worst}. Allowed: 0 (none) to below 1, such as 0.2.")
    shares = _shares(hidden_states, weights, reduction)
    asked = labels != IGNORED
    targets = labels[asked]
    if allowed is not None and allowed.dim() == 3:
        allowed = allowed[asked]

    def loss(hidden: Tensor) -> Tensor:
        return _without_worst(_cross_entropy(readout(hidden), targets, smoothing, allowed), drop_worst).mean()

    return _over_layers(hidden_states, asked, shares, loss, reduction, lean)


def leave_one_out(rewards: Tensor) -> Tensor:
    """What each sample is worth beyond the mean of the others of its group, same shape (groups, samples), at least two samples.

    Self-critical training with the other samples as baseline: Rennie et al. 2017 (arXiv:1612.00563), Luo 2020 (arXiv:2003.09971).

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise KnobError(f"rewards have the shape {tuple(rewards.shape)}. Give (groups, samples) with two samples or more.")
    count = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (count - 1)


def self_critical(
    hidden_states: Sequence[Tensor],
    readout: Callable[[Tensor], Tensor],
    sampled: Tensor,
    advantage: Tensor,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    weights: Weights | Sequence[float] = "uniform",
    lean: bool = False,
) -> Tensor:
    """L = -sum over layers of w_i * mean over tokens of advantage * log p_i(token), a scalar: the policy gradient for every exit.

    hidden_states: as in `layerwise`, for the decoder fed with the sampled texts. sampled: (rows, tokens) ids with their end token, -100
    behind it. advantage: (rows,), no gradient flows through it; see `leave_one_out`. Every layer is driven towards what the last layer
    said well. "mean" divides by the sum of the weights. lean: as in `layerwise`. Raises KnobError for one advantage too many or too few.
    """
    if advantage.shape != sampled.shape[:1]:
        raise KnobError(f"{tuple(advantage.shape)} advantages were given for {sampled.shape[0]} sampled rows. Give one per row.")
    shares = _shares(hidden_states, weights, reduction)
    asked = sampled != IGNORED
    targets, worth = sampled[asked], advantage.detach()[:, None].expand_as(sampled)[asked]

    def loss(hidden: Tensor) -> Tensor:
        return (worth * F.cross_entropy(readout(hidden).float(), targets, reduction="none")).mean()

    return _over_layers(hidden_states, asked, shares, loss, reduction, lean)


def agreement(
    hidden_states: Sequence[Tensor], readout: Callable[[Tensor], Tensor], asked: Tensor, scale: Tensor | float, centre: Tensor | float
) -> Tensor:
    """Teaches saturation to mean something, a scalar: mean BCE(scale * (cos(h_i-1, h_i) - centre), layer i says what the last one says).

    Over the layers 2 to n - 1 and the asked places; (rows, tokens), True where something is asked. MuE leaves where consecutive states are
    alike and hopes that the answer is ready there; with this loss beside the layer-wise one, a threshold on the cosine is a threshold on
    the chance that leaving changes nothing. Ours, not the paper's. No place at all, or fewer than three layers, gives 0.
    """
    picked = [hidden[asked].float() for hidden in hidden_states]
    if len(picked) < 3 or not len(picked[0]):
        return hidden_states[0].new_zeros(())
    with torch.no_grad():
        said = [readout(hidden[asked]).argmax(-1) for hidden in hidden_states[1:]]
    losses = [
        F.binary_cross_entropy_with_logits(scale * (F.cosine_similarity(before, after, dim=-1) - centre), (mine == said[-1]).float())
        for before, after, mine in zip(picked, picked[1:-1], said, strict=False)
    ]
    return torch.stack(losses).mean()


def distilled(
    hidden_states: Sequence[Tensor],
    readout: Callable[[Tensor], Tensor],
    teacher: Tensor,
    asked: Tensor,
    *,
    weights: Weights | Sequence[float] = "uniform",
) -> Tensor:
    """L = weighted mean over layers of KL(teacher || layer i), over the asked places, a scalar: exits learn what full depth says.

    teacher: (rows, tokens, vocabulary) logits, no gradient flows through them. asked: (rows, tokens), True where something is asked.
    In the way of FastBERT's self-distillation (Liu et al. 2020, arXiv:2004.02178). No place at all gives 0.
    """
    shares = _shares(hidden_states, weights, "mean")
    total = hidden_states[0].new_zeros(())
    if not bool(asked.any()):
        return total
    wanted = teacher.detach()[asked].float().log_softmax(-1)
    for hidden, share in zip(hidden_states, shares, strict=True):
        if share:
            said = readout(hidden[asked]).float().log_softmax(-1)
            total = total + share * F.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return total / sum(shares)


def _shares(hidden_states: Sequence[Tensor], weights: Weights | Sequence[float], reduction: str) -> list[float]:
    """One weight per layer, checked."""
    if reduction not in ("sum", "mean"):
        raise KnobError(f"reduction {reduction!r} is unknown. Allowed: sum, mean.")
    shares = layer_weights(len(hidden_states), weights) if isinstance(weights, str) else list(weights)
    if len(shares) != len(hidden_states):
        raise KnobError(f"{len(shares)} weights were given for {len(hidden_states)} layers. Give one per layer.")
    return shares


def _over_layers(
    hidden_states: Sequence[Tensor],
    asked: Tensor,
    shares: Sequence[float],
    loss: Callable[[Tensor], Tensor],
    reduction: str,
    lean: bool,
) -> Tensor:
    """The weighted sum of each layer's loss at the asked places; 0 where nothing is asked."""
    total = hidden_states[0].new_zeros(())
    if not bool(asked.any()):
        return total
    counted = [index for index, share in enumerate(shares) if share]
    for index in counted:
        picked = hidden_states[index][asked]
        again = lean and index != counted[-1] and torch.is_grad_enabled()  # the last one's backward pass comes first
        value = checkpoint(loss, picked, use_reentrant=False, preserve_rng_state=False) if again else loss(picked)
        total = total + shares[index] * value
    return total / sum(shares) if reduction == "mean" else total


def _without_worst(losses: Tensor, share: float) -> Tensor:
    """The lowest losses, without this share of the rows; one at least is kept."""
    if not share:
        return losses
    return losses.topk(max(1, int(len(losses) * (1 - share))), largest=False, sorted=False).values


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, allowed: Tensor | None) -> Tensor:
    """One figure per row; with a constraint the smoothing mass is spread over the allowed tokens only."""
    if allowed is None:
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing, reduction="none")
    logp = logits.float().masked_fill(~allowed, torch.finfo(torch.float32).min).log_softmax(-1)
    gold = -logp.gather(-1, targets[:, None])[:, 0]
    count = allowed.sum(-1)
    spread = -logp.masked_fill(~allowed, 0.0).sum(-1) / count
    return (1 - smoothing) * gold + smoothing * spread


def sampled_weights(layers: int, others: int, generator: torch.Generator) -> list[float]:
    """Weights that keep the last layer and `others` random ones of the rest, scaled so that their expectation is 1 for every layer."""
    if not 1 <= others <= layers - 1:
        raise KnobError(f"{others} other layers were asked for. Allowed: 1..{layers - 1}.")
    chosen = torch.randperm(layers - 1, generator=generator)[:others].tolist()
    return [1.0 if index == layers - 1 else (layers - 1) / others if index in chosen else 0.0 for index in range(layers)]
