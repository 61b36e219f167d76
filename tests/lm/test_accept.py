"""Which drafted tokens stand: the greedy prefix, and sampling that follows the model's law whatever the draft's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from exitwise.errors import InputError
from exitwise.lm.accept import accepted, greedy_match, speculative_sample
from exitwise.lm.asked import Asked

DRAWS = 6_000


def asked(**more: Any) -> Asked:
    return Asked([[1]], 10, frozenset(), 0, LogitsProcessorList(), **more)


@pytest.mark.parametrize("drafted, verdicts, want", [
    ([7, 8, 9], [7, 8, 9, 4], [7, 8, 9, 4]),  # all stand, and the model's own on top
    ([7, 8, 9], [7, 5, 9, 4], [7, 5]),        # what comes after a wrong one does not stand, even where it would match
    ([7, 8, 9], [6, 8, 9, 4], [6]),
    ([], [3], [3]),
])  # fmt: skip
def test_the_longest_prefix_that_agrees_and_one_more(drafted: list[int], verdicts: list[int], want: list[int]) -> None:
    assert greedy_match(drafted, verdicts) == want


def test_sampled_tokens_follow_the_models_law() -> None:
    """Three laws and two drafts of ten words, some of them impossible on one side. Chi-square of the first, second and third token's
    counts against the model's law, below 40: with at most 9 degrees of freedom that happens by chance once in 10^5 (the seed is fixed)."""
    dice = torch.Generator().manual_seed(7)
    draft, law = torch.rand(2, 10, generator=dice) ** 3, torch.rand(3, 10, generator=dice) ** 3
    draft[0, 3], law[0, 5], draft[1, :2], law[1, 8:] = 0, 0, 0, 0
    draft, law = draft / draft.sum(-1, keepdim=True), law / law.sum(-1, keepdim=True)
    counts, stood = [Counter[int]() for _ in range(3)], 0
    for _ in range(DRAWS):
        drafted = [int(torch.multinomial(q, 1, generator=dice)) for q in draft]
        out = speculative_sample(drafted, list(draft), list(law), dice)
        stood += len(out) > 1
        for place, token in enumerate(out):
            counts[place][token] += 1
    for place, counted in enumerate(counts):
        total = sum(counted.values())
        want = law[place] * total
        assert all(want[token] > 0 for token in counted)
        chi = sum(float((counted[token] - want[token]) ** 2 / want[token]) for token in range(10) if want[token] > 0)
        assert chi < 40, (place, chi)
    overlap = float(torch.minimum(draft[0], law[0]).sum())
    assert abs(stood / DRAWS - overlap) < 4 * (overlap * (1 - overlap) / DRAWS) ** 0.5  # four standard errors
    greedy = law[0].argmax().item()
    assert abs(counts[0][int(greedy)] / DRAWS - float(draft[0, int(greedy)])) > 0.05  # the draft's own law would fail


def test_equal_laws_always_stand_and_apart_never() -> None:
    dice = torch.Generator().manual_seed(0)
    first, second = torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0, 0, 0.25, 0.75])
    for token in (0, 1):
        assert speculative_sample([token], [first], [first, second], dice)[0] == token
        assert speculative_sample([token], [first], [second, first], dice)[0] in (2, 3)


def test_processed_laws_decide_where_there_are_any() -> None:
    """min_new_tokens forbids the end at first: the verdict is then the second likeliest."""
    logits = torch.tensor([[0.0, 1, 2, 3], [0, 1, 2, 3], [5, 1, 2, 3]])
    held = Asked([[1]], 10, frozenset([3]), 0, LogitsProcessorList(), least=2)
    assert accepted(held, [1], 1, [2, 2], [], logits) == [2, 2, 0]
    assert accepted(asked(), [1], 1, [3, 3], [], logits) == [3, 3, 0]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("sample", [False, True])
def test_nan_is_refused_wherever_it_stands(place: int, sample: bool) -> None:
    logits = torch.zeros(3, 4)
    logits[place, 2] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        accepted(asked(sample=sample), [1], 1, [0, 0], [torch.full((4,), 0.25)] * 2, logits)
