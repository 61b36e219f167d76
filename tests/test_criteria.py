"""Similarities, schedules and rules against values worked out by hand."""

import math

import pytest
import torch

from exitwise.criteria import Drawn, Fixed, Saturation, Step, paper_schedule, released_schedule, similarities, similarity, single
from exitwise.errors import DepthError, KnobError
from exitwise.reading import Reading

DICE = torch.Generator().manual_seed(0)


def test_flat_and_token_mean_differ_as_by_hand():
    """Token 1 turns by 90 degrees and is long, token 2 stays: the mean of cosines is 1/2, the flat cosine weighs by length: 1 / 10."""
    before = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    after = torch.tensor([[[0.0, 3.0], [1.0, 0.0]]])
    assert similarity(before, after, "token_mean").item() == pytest.approx(0.5, abs=1e-6)
    assert similarity(before, after, "flat").item() == pytest.approx(0.1, abs=1e-6)
    assert similarity(before, after, "token_min").item() == pytest.approx(0.0, abs=1e-6)
    assert similarity(before, after, "last").item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("scope", ["token_mean", "flat", "token_min", "last"])
def test_pads_do_not_change_the_decision(scope):
    torch.manual_seed(0)
    before, after = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    alone = similarity(before[:1, :3], after[:1, :3], scope)
    padded = similarity(before, after, scope, mask)
    assert padded[0].item() == pytest.approx(alone.item(), abs=1e-6)  # another order of summation
    before[0, 3:] += 100
    assert torch.equal(similarity(before, after, scope, mask), padded)


def test_rows_are_judged_one_by_one():
    before = torch.randn(3, 4, 8)
    after = before.clone()
    after[1] = -after[1]
    assert similarity(before, after, "flat").tolist() == pytest.approx([1, -1, 1], abs=1e-5)


def test_the_comparison_is_strict():
    rule = Saturation(0.5)
    assert rule.leaves([0.5, 0.50001], Step(1, 4), [0, 1]) == [False, True]


def test_one_means_never_whatever_rounding_does():
    rule = Saturation(1.0)
    state = torch.ones(1, 1, 8, dtype=torch.float16) * 0.1
    assert not rule.may_leave(Step(2, 4))
    assert rule.depths(3, 4, 0, DICE) == [4, 4, 4]
    assert similarity(state, state).dtype == torch.float32


def test_no_rule_leaves_before_its_minimum_or_asks_at_the_last_layer():
    rule = Saturation(0.5, minimum=3)
    assert [rule.may_leave(Step(i, 4)) for i in (1, 2, 3, 4)] == [False, False, True, False]


def test_schedules_have_the_papers_values():
    """mue.md, check 6: .9905 at t=0, .9708 at N/2, .9589 at N; the released code: 1 for steps 0 to 5, .876 at step 6, .847 at step 16."""
    assert [round(paper_schedule(0.99, t, 16, 0.95, 1.0), 4) for t in (0, 8, 16)] == [0.9905, 0.9708, 0.9589]
    assert [released_schedule(0.9, t, 16, 0.95, 1.0) for t in range(6)] == [1.0] * 6
    assert [round(released_schedule(0.9, t, 16, 0.95, 1.0), 3) for t in (6, 16)] == [0.876, 0.847]


def test_a_released_schedule_never_leaves_in_the_first_third():
    rule = Saturation(0.9, schedule="released")
    assert [rule.may_leave(Step(1, 6, t, 16)) for t in (0, 5, 6)] == [False, False, True]


def test_fixed_depths_per_row_and_per_step():
    assert Fixed((1, 3)).depths(3, 4, 0, DICE) == [1, 3, 1]
    assert Fixed(pattern=(4, 2)).depths(2, 4, 5, DICE) == [2, 2]
    with pytest.raises(DepthError, match="1..4"):
        Fixed(5).depths(1, 4, 0, DICE)


def test_drawn_depths_follow_their_weights_and_repeat_with_the_seed():
    """3,000 draws: the share of each depth within 4 standard errors of its weight."""
    rule = Drawn((0.5, 0.25, 0.0, 0.25))
    first = rule.depths(3000, 4, 0, torch.Generator().manual_seed(7))
    assert first == rule.depths(3000, 4, 0, torch.Generator().manual_seed(7))
    for depth, weight in ((1, 0.5), (2, 0.25), (3, 0.0), (4, 0.25)):
        assert abs(first.count(depth) / 3000 - weight) <= 4 * math.sqrt(weight * (1 - weight) / 3000)


@pytest.mark.parametrize("bad", [float("nan"), -1.5])
def test_a_threshold_outside_its_range_is_refused(bad):
    with pytest.raises(KnobError, match="range"):
        Saturation(bad)


def test_a_single_vector_is_measured_as_in_a_batch() -> None:
    """Three products in place of the cosine's operations: the same number to float32's rounding of 576 terms, and zeros are no ground to
    divide by."""
    dice = torch.Generator().manual_seed(0)
    before, after = (torch.randn(8, 1, 576, generator=dice) for _ in range(2))
    after = before + 0.1 * after
    batch = similarity(before, after)
    alone = [similarities(before[i : i + 1], after[i : i + 1])[0] for i in range(8)]
    assert alone == pytest.approx(batch.tolist(), abs=1e-6) and alone == [single(sure) for sure in alone]
    assert similarities(before[:1] * 0, after[:1]) == [0.0]
    assert similarities(before[:1].bfloat16(), after[:1].bfloat16()) == similarity(before[:1].bfloat16(), after[:1].bfloat16()).tolist()


def test_a_threshold_that_was_measured_equals_itself() -> None:
    """A measurement is float32; a threshold of 0.1 is not one, and as a number of the host it lies below float32's 0.1."""
    measured = similarity(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.1, (1 - 0.1**2) ** 0.5]]])).tolist()
    assert measured == [single(0.1)] and single(0.1) > 0.1
    assert Saturation(0.1).leaves(measured, Step(1, 4), [0]) == [False]
    assert Reading(lambda view: view.token, 0.1).leaves(measured, Step(1, 4), [0]) == [False]
    assert Reading(lambda view: view.token, 0.7, strict=False).leaves([single(0.7)], Step(1, 4), [0]) == [True]  # which lies below 0.7
