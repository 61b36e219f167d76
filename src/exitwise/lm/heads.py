"""Reading a state out at less than the price of the whole head: a part of the vocabulary, or a bound that proves the likeliest word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FamilyError, KnobError
from ..stack import reach
from .backbone import Backbone


def normed(backbone: Backbone) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(the final norm, the head's weight (vocabulary, width)), both by reference. Raises FamilyError where the family does not tell
    them."""
    model: Any = backbone.model
    head = model.get_output_embeddings()
    norm = None if backbone.language.norm is None else reach(model, backbone.language.norm)
    projected = head is not None and norm is not None and head.weight.shape[1] != norm.weight.shape[-1]
    if norm is None or head is None or projected or getattr(head, "bias", None) is not None:
        raise FamilyError(f"The head of {type(model).__name__} is not a norm and one matrix, so that no part of it can be read alone.")
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


class Bounded:
    """The likeliest word of a head, exactly, by reading a few columns of it turned and a bound on the rest.

    The head's weight W (vocabulary, width) is turned by the orthogonal basis in which its words vary most, W B, and its first `rank`
    columns are kept, with the length of each word's rest. For a state h turned to (a, b), a word's logit is at most its logit over a plus
    the length of its rest times |b|. Words whose upper bound is below the best lower bound are out; the others are read in full. What is
    found is the arg-max of the whole head; `asked` and `read` count words, to see what it saves.
    """

    def __init__(self, norm: Callable[[Tensor], Tensor], weight: Tensor, rank: int) -> None:
        width = weight.shape[1]
        if not 1 <= rank < width:
            raise KnobError(f"A rank of {rank} is outside 1..{width - 1}: the head is {width} wide.")
        with torch.no_grad():
            gram = torch.zeros(width, width, dtype=torch.float64)
            for part in torch.split(weight, 16384):
                gram += part.double().T @ part.double()
            basis = torch.linalg.eigh(gram).eigenvectors.flip(-1).to(weight)
            self.basis, self.norm, self.weight, self.rank = basis, norm, weight, rank
            self.first = torch.cat([part @ basis[:, :rank] for part in torch.split(weight, 16384)])
            self.rest = torch.cat([(part @ basis[:, rank:]).norm(dim=-1) for part in torch.split(weight, 16384)])
        self.asked = self.read = 0

    @torch.no_grad()
    def likeliest(self, state: Tensor) -> int:
        """The arg-max of the whole head for one state (width,) before the final norm."""
        hidden = self.norm(state[None])[0]
        turned = hidden @ self.basis
        near, far = self.first @ turned[: self.rank], self.rest * turned[self.rank :].norm()
        slack = 1e-5 * (1.0 + float(near.abs().max() + far.max()))  # float32 sums in another order
        open_ = (near + far >= (near - far).max() - slack).nonzero()[:, 0]
        self.asked, self.read = self.asked + len(near), self.read + len(open_)
        return int(open_[(self.weight[open_] @ hidden).argmax()])

    @property
    def share(self) -> float:
        """Share of the words that were read in full."""
        return self.read / self.asked if self.asked else math.nan
