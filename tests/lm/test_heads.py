"""Parts of a head: the first words, a list of words, and a head of low rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.families.cases import made
from tests.lm.parts import backbone_of
from torch import Tensor

from exitwise import Engine
from exitwise.errors import AttachError, FamilyError, InputError, KnobError
from exitwise.lm.heads import LowRank, head_of, normed, own_states, short


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


def fitted(weight: Tensor, states: Tensor, rank: int, **more: Any) -> LowRank:
    return LowRank(weight.shape[0], weight.shape[1], rank, **more).fit(weight, states)


def test_words_that_vary_in_few_directions_are_read_right_at_that_rank() -> None:
    weight = weight_of(400, 16, 4, 0.0)
    states = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))
    low = fitted(weight, states, 4, most=1)
    # float64 factors kept in float32; a hundredth of the ridge that keeps the moment invertible
    torch.testing.assert_close(low.read(weight, states[:50, None])[:, 0], states[:50] @ weight.T, atol=2e-3, rtol=1e-4)
    assert float(low.spread.max()) < 1e-2


def test_words_in_doubt_are_read_in_full() -> None:
    weight = weight_of(400, 16, 16, 0.0)
    states = torch.randn(800, 16, generator=torch.Generator().manual_seed(3))
    asked, whole = states[:200], states[:200] @ weight.T
    hits = []
    for most in (1, 8, 64):
        said = fitted(weight, states, 6, most=most).read(weight, asked[:, None])[:, 0]
        hits.append(int((said.argmax(-1) == whole.argmax(-1)).sum()))
    assert hits[0] < hits[1] < hits[2] and hits[2] >= 198  # estimates alone are wrong often, those that were looked at seldom
    picked = said.gather(1, said.argmax(-1, keepdim=True))
    torch.testing.assert_close(picked, whole.gather(1, said.argmax(-1, keepdim=True)))  # what is said of the likeliest is the head's


def test_the_basis_is_that_of_the_states_not_of_the_words() -> None:
    """States that lie in four directions need a rank of four, however the words vary."""
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(4))).Q
    states = torch.randn(500, 4, generator=torch.Generator().manual_seed(5)) @ turn[:4]
    weight = weight_of(300, 16, 16, 0.0) + 5 * torch.randn(300, 12, generator=torch.Generator().manual_seed(6)) @ turn[4:]
    said = fitted(weight, states, 4, most=1).read(weight, states[:80, None])[:, 0]
    assert float((said - states[:80] @ weight.T).abs().max()) < 0.3  # the ridge; logits reach 10


def test_a_rank_outside_the_width_and_too_few_states_are_refused() -> None:
    for rank in (0, 16):
        with pytest.raises(KnobError, match=f"rank of {rank} is outside 1..15"):
            LowRank(20, 16, rank)
    with pytest.raises(InputError, match="3 states do not fill a rank of 4"):
        fitted(torch.eye(16), torch.randn(3, 16), 4)


def test_a_models_own_states_are_those_that_its_head_reads() -> None:
    backbone = backbone_of()
    states = own_states(backbone, 40, rows=4)
    assert states.shape == (40, 32) and torch.equal(states, own_states(backbone, 40, rows=4))
    with torch.no_grad():
        begun = backbone.model(torch.tensor([[1]])).logits[0, 0]  # all rows begin with the token that begins a text
    torch.testing.assert_close(states[:4] @ normed(backbone)[1].T, begun.expand(4, -1), atol=1e-4, rtol=1e-4)  # float32, another order


def test_exits_are_read_by_the_low_rank_head_and_tokens_by_the_whole() -> None:
    model, inputs = made("llama")
    never = Engine(model, "soft", decoder=1.0, rank=8).generate(**inputs, max_new_tokens=8)
    plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(never.sequences, plain)
    out = Engine(model, "soft", decoder=0.0, every=2, minimum=2, rank=8).generate(**inputs, max_new_tokens=8)
    whole = Engine(model, "soft", decoder=0.0, every=2, minimum=2).generate(**inputs, max_new_tokens=8)
    assert torch.equal(out.sequences, whole.sequences)  # all leave at depth 2, whatever is asked there: the token itself is the head's
    assert out.trace.head_calls == 8 < whole.trace.head_calls
    with pytest.raises(AttachError, match="a loop of their own"), Engine(model, "soft", rank=8).attached():
        pass
