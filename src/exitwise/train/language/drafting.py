"""What a drafter is trained by and judged by: the full model's law, and how many of its words a round of drafting yields."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def soft_cross_entropy(logits: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
    """- mean over n of sum_k shares * log softmax(logits)[numbers], a scalar.

    logits (n, words); numbers (n, kept) words with a share in the target; shares (n, kept), each row summing to 1. A target over all
    words is the special case kept = words.
    """
    asked = logits.gather(-1, numbers)
    return (logits.logsumexp(-1) * shares.sum(-1) - (shares * asked).sum(-1)).mean()


def accepted_at_once(hits: Sequence[bool], most: int) -> float:
    """Tokens that a round of drafting yields on average, the model's own token included, from which positions a drafter hit.

    hits: for each position of one greedy answer, whether the drafter's word is the model's. most: words drafted in a round, 1 or more. The
    answer is walked as decoding would: so many hits in a row as there are, at most `most`, and one token more.

    >>> accepted_at_once([True, True, False, True], 2)
    2.0
    """
    at, rounds = 0, 0
    while at < len(hits):
        run = 0
        while run < most and at + run < len(hits) and hits[at + run]:
            run += 1
        at, rounds = at + run + 1, rounds + 1
    return len(hits) / rounds if rounds else math.nan
