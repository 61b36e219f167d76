"""Which drafted tokens stand once the whole model has read them, and the one token that the whole model adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .asked import Asked, likeliest


def greedy_match(drafted: Sequence[int], verdicts: Sequence[int]) -> list[int]:
    """The longest prefix on which draft and model agree, and the model's own next token.

    verdicts: what the model says after the known token and after each drafted one; one more than drafted.

    >>> greedy_match([7, 8, 9], [7, 8, 5, 1])
    [7, 8, 5]
    """
    stands = 0
    while stands < len(drafted) and drafted[stands] == verdicts[stands]:
        stands += 1
    return [*drafted[:stands], verdicts[stands]]


def speculative_sample(drafted: Sequence[int], drafts: Sequence[Tensor], laws: Sequence[Tensor], dice: torch.Generator) -> list[int]:
    """Tokens that follow the model's law exactly, whatever the draft's (Leviathan et al. 2023, arXiv:2211.17192, algorithm 1).

    drafts: (vocabulary,) probabilities from which each token was drawn. laws: those of the model, one more. A token stands with probability
    min(1, p / q); at the first that does not, one is drawn from the normalised max(0, p - q), else from the last law.
    """
    out: list[int] = []
    for token, q, p in zip(drafted, drafts, laws, strict=False):
        if float(torch.rand((), generator=dice)) * float(q[token]) < float(p[token]):
            out.append(token)
            continue
        left = (p - q).clamp(min=0)
        return [*out, int(torch.multinomial((left if float(left.sum()) > 0 else p).cpu(), 1, generator=dice))]
    return [*out, int(torch.multinomial(laws[len(drafted)].cpu(), 1, generator=dice))]


def accepted(asked: Asked, ids: list[int], prompt: int, drafted: Sequence[int], drafts: Sequence[Tensor], logits: Tensor) -> list[int]:
    """The new tokens of a row: `ids` are those that the model has confirmed so far; logits (drafted + 1, vocabulary) are the model's."""
    if asked.plain:
        return greedy_match(drafted, likeliest(logits))
    laws = [asked.law([*ids, *drafted[:i]], prompt, logits[i]) for i in range(len(drafted) + 1)]
    if not asked.sample:
        return greedy_match(drafted, [int(law.argmax(-1)) for law in laws])
    return speculative_sample(drafted, drafts, [law.softmax(-1) for law in laws], asked.dice)
