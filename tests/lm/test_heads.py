"""Parts of a head: the first words, a list of words, and a bound that finds the whole head's likeliest word."""

from __future__ import annotations

import math

import pytest
import torch
from tests.lm.parts import backbone_of
from torch import Tensor

from exitwise.errors import FamilyError, KnobError
from exitwise.lm.heads import Bounded, head_of, normed, short


def weight_of(words: int, width: int, rank: int, noise: float, seed: int = 0) -> Tensor:
    """A head that varies mostly in `rank` directions."""
    dice = torch.Generator().manual_seed(seed)
    low = torch.randn(words, rank, generator=dice) @ torch.randn(rank, width, generator=dice)
    return low + noise * torch.randn(words, width, generator=dice)


def test_the_first_words_are_read_as_the_whole_head_reads_them() -> None:
    weight = weight_of(50, 16, 16, 0.0)
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    whole = head_of(weight, None)(states)
    torch.testing.assert_close(head_of(weight, 20)(states), whole[..., :20])
    for count in (0, 51):
        with pytest.raises(KnobError, match=f"short list of {count} words is outside 1..50"):
            head_of(weight, count)


def test_a_list_of_words_gives_the_others_nothing() -> None:
    weight, ids = weight_of(50, 16, 16, 0.0), torch.tensor([40, 3, 17])
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    got, whole = head_of(weight, ids)(states), head_of(weight, None)(states)
    assert got.shape == (2, 3, 50) and torch.isinf(got).sum() == 2 * 3 * 47
    torch.testing.assert_close(got[..., ids], whole[..., ids])


@torch.no_grad()
def test_the_short_head_of_a_model_norms_first_and_copies_nothing() -> None:
    backbone = backbone_of()
    states = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(1)) * 4
    torch.testing.assert_close(short(backbone, 30)(states), backbone.readout(states)[..., :30])
    assert normed(backbone)[1].data_ptr() == backbone.model.lm_head.weight.data_ptr()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("case", ["phi", "opt-projected"])  # a head with a bias; no final norm, and a projection before the head
def test_a_head_of_more_than_a_norm_and_a_matrix_is_refused(case: str) -> None:
    with pytest.raises(FamilyError, match="not a norm and one matrix"):
        normed(backbone_of(case))


@pytest.mark.parametrize("rank", [1, 4, 15])
def test_the_bound_finds_the_likeliest_word(rank: int) -> None:
    weight = weight_of(400, 16, 4, 0.05)
    bounded = Bounded(lambda x: x, weight, rank)
    for state in torch.randn(200, 16, generator=torch.Generator().manual_seed(2)):
        assert bounded.likeliest(state) == int((weight @ state).argmax())
    assert bounded.asked == 200 * 400
    assert bounded.share < 0.05 if rank >= 4 else bounded.share > 0.05  # four directions hold nearly all; one does not


def test_the_bound_holds_against_states_that_hide_in_the_rest() -> None:
    """States along the directions that were left out, and words of which one is theirs: there the kept columns say nothing, or the wrong
    thing."""
    weight = weight_of(300, 16, 4, 0.05)
    basis = Bounded(lambda x: x, weight, 4).basis
    dice = torch.Generator().manual_seed(3)
    for scale in (1e-3, 1.0, 1e3):
        for hidden in torch.randn(30, 12, generator=dice):
            rest = basis[:, 4:] @ hidden * scale
            planted = weight.clone()
            planted[123] = rest / rest.norm() * 0.5  # small, but right along the state
            bounded = Bounded(lambda x: x, planted, 4)
            for state in (rest, rest + 1e-3 * scale * basis[:, 0], -rest):
                got, logits = bounded.likeliest(state), planted @ state
                assert logits[got] == logits.max()


def test_equal_words_and_a_zero_state_have_an_answer_too() -> None:
    weight = weight_of(100, 16, 4, 0.05)
    assert 0 <= Bounded(lambda x: x, weight, 4).likeliest(torch.zeros(16)) < 100
    twins = torch.cat([weight, weight])
    state = torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert Bounded(lambda x: x, twins, 4).likeliest(state) % 100 == int((weight @ state).argmax())


def test_ranks_outside_the_width_are_refused() -> None:
    for rank in (0, 16):
        with pytest.raises(KnobError, match=f"rank of {rank} is outside 1..15"):
            Bounded(lambda x: x, torch.eye(16), rank)
    assert math.isnan(Bounded(lambda x: x, torch.eye(16), 3).share)
