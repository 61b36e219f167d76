"""Reading a state out at less than the price of the whole head: a part of the vocabulary, or estimates of all words and a look at those
in doubt."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FamilyError, InputError, KnobError
from .backbone import Backbone
from .stair import Stair


def normed(backbone: Backbone) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(the final norm, the head's weight (vocabulary, width)), both by reference. Raises FamilyError where the family does not tell
    them."""
    found = backbone.head()
    if found is None:
        raise FamilyError(
            f"The head of {type(backbone.model).__name__} is not a norm and one matrix, so that no part of it can be read alone."
        )
    norm, head = found
    return norm, head.weight


def short(backbone: Backbone, words: int | Tensor) -> Callable[[Tensor], Tensor]:
    """A head for part of the vocabulary, of states before the final norm; see `head_of`."""
    norm, weight = normed(backbone)
    read = head_of(weight, words)
    return lambda states: read(norm(states))


def head_of(weight: Tensor, words: int | Tensor | None) -> Callable[[Tensor], Tensor]:
    """Logits of normed states from part of a head (vocabulary, width): its first `words` tokens (byte-pair vocabularies hold the frequent
    ones first; nothing is copied), those of a list (their rows are copied; other tokens get -inf), or None for all. Without soft caps."""
    if words is None:
        return lambda states: F.linear(states, weight)
    if isinstance(words, int):
        if not 1 <= words <= len(weight):
            raise KnobError(f"A short list of {words} words is outside 1..{len(weight)}, the vocabulary.")
        first = weight[:words]
        return lambda states: F.linear(states, first)
    part = weight[words]

    def read(states: Tensor) -> Tensor:
        logits = F.linear(states, part)
        return logits.new_full((*logits.shape[:-1], len(weight)), float("-inf")).index_copy_(-1, words, logits)

    return read


class LowRank(nn.Module):
    """A head at the price of its first `rank` columns, turned into the basis in which the model's own states vary most.

    With C the second moment of normed states, a logit w.h is (C^1/2 w).(C^-1/2 h); in the basis in which the words C^1/2 w vary most, its
    first `rank` terms are its estimate, and the rest has about the length of the word's rest as its standard deviation, `spread`. Words
    whose estimate plus `sigmas` spreads reaches the best estimate less its own are read in full, `most` of them at most. A bound that holds
    for sure (Cauchy-Schwarz) excludes no word at all here: lengths of many dimensions are far above what their products are. So the arg-max
    is that of the head nearly always, not always: for drafts, which are verified, and for asking at exits.

    words: (vocabulary, rank); spread: (vocabulary,); turn: (width, rank).
    """

    words: Tensor
    spread: Tensor
    turn: Tensor

    def __init__(self, vocabulary: int, width: int, rank: int, sigmas: float = 4.0, most: int = 256) -> None:
        super().__init__()
        if not 1 <= rank < width:
            raise KnobError(f"A rank of {rank} is outside 1..{width - 1}: the head is {width} wide.")
        self.sigmas, self.most = sigmas, min(most, vocabulary)
        for name, shape in (("words", (vocabulary, rank)), ("spread", (vocabulary,)), ("turn", (width, rank))):
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def fit(self, weight: Tensor, states: Tensor) -> LowRank:
        """From a head (vocabulary, width) and normed states (tokens, width), a thousand or more. Raises InputError for fewer than the
        rank."""
        if len(states) < self.turn.shape[1]:
            raise InputError(f"{len(states)} states do not fill a rank of {self.turn.shape[1]}. Give a thousand tokens or more.")
        moment = states.double().T @ states.double() / len(states)
        moment += 1e-3 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(moment)
        root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
        gram = torch.zeros_like(moment)
        for part in torch.split(weight, 16384):
            turned = part.double() @ root
            gram += turned.T @ turned
        basis = torch.linalg.eigh(gram).eigenvectors.flip(-1)
        rank, first = self.turn.shape[1], 0
        for part in torch.split(weight, 16384):
            turned = part.double() @ root @ basis
            self.words[first : first + len(part)] = turned[:, :rank].float()
            self.spread[first : first + len(part)] = turned[:, rank:].norm(dim=-1).float()
            first += len(part)
        self.turn.copy_((inverse @ basis)[:, :rank].float())
        return self

    @torch.no_grad()
    def read(self, weight: Tensor, states: Tensor) -> Tensor:
        """(rows, tokens, vocabulary) logits of normed states (rows, tokens, width): estimates, and what the head says of the words in
        doubt."""
        flat = states.reshape(-1, states.shape[-1])
        near = flat @ self.turn @ self.words.T
        reach_ = near + self.sigmas * self.spread
        floor = (near - self.sigmas * self.spread).amax(-1, keepdim=True)
        top = reach_.topk(self.most, dim=-1)
        exact = torch.einsum("tkw,tw->tk", weight[top.indices], flat)
        near.scatter_(1, top.indices, torch.where(top.values >= floor, exact, near.gather(1, top.indices)))
        return near.view(*states.shape[:-1], -1)


@torch.no_grad()
def own_states(backbone: Backbone, tokens: int = 1536, rows: int = 32, seed: int = 0) -> Tensor:
    """(tokens, width) normed states that a model visits when it samples from its own law, from its first token on: what a `LowRank` is
    fitted to."""
    model: Any = backbone.model
    norm, weight = normed(backbone)
    start = model.config.bos_token_id if model.config.bos_token_id is not None else 0
    dice, stair, found = torch.Generator().manual_seed(seed), Stair(backbone, rows), []
    newest = [[int(start)]] * rows
    for _ in range(-(-tokens // rows)):
        stair.append(range(rows), newest)
        stair.advance(range(rows), backbone.depth)
        states = norm(stair.newest(range(rows)))[:, 0]
        found.append(states)
        law = F.linear(states, weight).float().softmax(-1).cpu()
        newest = torch.multinomial(law, 1, generator=dice).tolist()
    return torch.cat(found)[:tokens]


_FITTED: weakref.WeakKeyDictionary[nn.Module, dict[int, LowRank]] = weakref.WeakKeyDictionary()


def low_rank(backbone: Backbone, rank: int) -> Callable[[Tensor], Tensor]:
    """A `LowRank` head of states before the final norm, fitted to the model's own states when it is first asked for and kept for the
    model."""
    norm, weight = normed(backbone)
    kept = _FITTED.setdefault(backbone.model, {})
    if rank not in kept:
        found = LowRank(weight.shape[0], weight.shape[1], rank).to(weight.device)
        kept[rank] = found.fit(weight, own_states(Backbone(backbone.model, backbone.family)))
    return lambda states: kept[rank].read(weight, norm(states))
