"""The layer-wise loss: what it sums, what it ignores, and where its gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from exitwise.errors import KnobError
from exitwise.train import agreement, distilled, layer_weights, layerwise, leave_one_out, sampled_weights, self_critical


@pytest.fixture
def states() -> list[torch.Tensor]:
    """Three layers, 2 rows, 3 tokens, width 5; each asks for its gradient."""
    torch.manual_seed(0)
    return [torch.randn(2, 3, 5, requires_grad=True) for _ in range(3)]


LABELS = torch.tensor([[1, 4, -100], [-100, 0, -100]])


def identity(hidden: torch.Tensor) -> torch.Tensor:
    """A head whose logits are the state itself."""
    return hidden


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_layer_is_plain_cross_entropy(states: list[torch.Tensor], smoothing: float) -> None:
    expected = F.cross_entropy(states[0].flatten(0, 1), LABELS.flatten(), ignore_index=-100, label_smoothing=smoothing)
    assert torch.allclose(layerwise(states[:1], identity, LABELS, smoothing=smoothing), expected)


def test_the_sum_by_hand() -> None:
    # Two classes. Layer 1 says (0, 0): CE ln 2. Layer 2 says (ln 3, 0): the true class has 3/4, CE ln 4/3.
    states = [torch.zeros(1, 1, 2), torch.tensor([[[math.log(3.0), 0.0]]])]
    labels = torch.tensor([[0]])
    one, two = math.log(2), math.log(4 / 3)
    assert float(layerwise(states, identity, labels)) == pytest.approx(one + two)
    assert float(layerwise(states, identity, labels, reduction="mean")) == pytest.approx((one + two) / 2)
    assert float(layerwise(states, identity, labels, weights="linear")) == pytest.approx(2 / 3 * one + 4 / 3 * two)
    assert float(layerwise(states, identity, labels, weights="avg+last")) == pytest.approx(0.5 * one + 1.5 * two)
    assert float(layerwise(states, identity, labels, weights=[0.0, 2.0])) == pytest.approx(2 * two)


def test_the_gradient_reaches_every_layer_and_no_place_that_is_not_asked(states: list[torch.Tensor]) -> None:
    layerwise(states, identity, LABELS).backward()
    for state in states:
        assert state.grad is not None
        assert (state.grad[LABELS != -100].abs().sum(-1) > 0).all()
        assert (state.grad[LABELS == -100] == 0).all()


def test_the_head_sees_the_asked_places_only(states: list[torch.Tensor]) -> None:
    seen: list[torch.Size] = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return hidden

    layerwise(states, head, LABELS, weights=[1.0, 0.0, 1.0])
    assert seen == [(3, 5), (3, 5)]  # a layer of weight 0 is not read out


def test_forbidden_tokens_have_no_part(states: list[torch.Tensor]) -> None:
    allowed = torch.tensor([True, True, False, False, True])
    loss = layerwise(states, identity, LABELS, allowed=allowed)
    asked = LABELS != -100
    kept = [state[asked][:, allowed] for state in states]
    renumbered = torch.tensor([1, 2, 0])  # the labels 1, 4, 0 among the tokens 0, 1, 4
    assert torch.allclose(loss, sum(F.cross_entropy(logits, renumbered) for logits in kept))
    smoothed = layerwise(states, identity, LABELS, allowed=allowed, smoothing=0.1)
    assert torch.allclose(smoothed, sum(F.cross_entropy(logits, renumbered, label_smoothing=0.1) for logits in kept))
    loss.backward()
    assert states[0].grad is not None and (states[0].grad[..., 2:4] == 0).all()


def test_a_constraint_may_differ_from_place_to_place(states: list[torch.Tensor]) -> None:
    allowed = torch.zeros(2, 3, 5, dtype=torch.bool)
    allowed[LABELS != -100, LABELS[LABELS != -100]] = True  # only the truth is allowed: nothing is left to learn
    assert layerwise(states, identity, LABELS, allowed=allowed).item() == pytest.approx(0.0, abs=1e-6)


def test_no_label_at_all_gives_zero(states: list[torch.Tensor]) -> None:
    assert float(layerwise(states, identity, torch.full((2, 3), -100))) == 0.0


def test_sampled_weights_keep_the_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sampled_weights(6, 2, generator) for _ in range(4000)])
    assert bool((drawn[:, -1] == 1).all()) and bool(((drawn > 0).sum(1) == 3).all())
    # Each of the five others: 2.5 with probability 2/5; the mean of 4000 has a spread of 1.22 / 63 = 0.02.
    assert torch.allclose(drawn.mean(0), torch.ones(6), atol=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda states: layerwise(states, identity, LABELS, weights="quadratic"),
        lambda states: layerwise(states, identity, LABELS, weights=[1.0]),
        lambda states: layerwise(states, identity, LABELS, reduction="none"),
        lambda states: sampled_weights(6, 6, torch.Generator()),
    ],
)
def test_wrong_options_are_named(states: list[torch.Tensor], wrong: object) -> None:
    with pytest.raises(KnobError):
        wrong(states)  # type: ignore[operator]


def test_weights_sum_to_the_number_of_layers() -> None:
    for kind in ("uniform", "linear", "avg+last"):
        assert sum(layer_weights(6, kind)) == pytest.approx(6)  # type: ignore[arg-type]


def test_an_advantage_is_what_a_sample_is_worth_beyond_the_others() -> None:
    assert leave_one_out(torch.tensor([[3.0, 1.0], [5.0, 5.0]])).tolist() == [[2.0, -2.0], [0.0, 0.0]]
    with pytest.raises(KnobError, match="two samples"):
        leave_one_out(torch.ones(4, 1))


def test_self_critical_by_hand() -> None:
    # One layer says (ln 3, 0): the sampled class 0 has 3/4. Worth 2 in row 1; in row 2 worth -1 and class 1, which has 1/4.
    hidden = torch.tensor([[[math.log(3.0), 0.0]], [[math.log(3.0), 0.0]]])
    loss = self_critical([hidden], identity, torch.tensor([[0], [1]]), torch.tensor([2.0, -1.0]))
    assert float(loss) == pytest.approx((2 * math.log(4 / 3) - math.log(4)) / 2)


def test_self_critical_drives_every_layer_towards_what_was_worth_more(states: list[torch.Tensor]) -> None:
    sampled = torch.tensor([[1, 4, -100], [2, 0, 3]])
    self_critical(states, identity, sampled, torch.tensor([1.0, -1.0])).backward()
    for state in states:
        assert state.grad is not None
        assert float(state.grad[0, 0, 1]) < 0  # a step down the gradient makes the good text likelier
        assert float(state.grad[1, 0, 2]) > 0  # and the bad one less likely
        assert float(state.grad[0, 2].abs().sum()) == 0  # behind the end nothing is learnt


def test_self_critical_counts_layers_by_their_weights(states: list[torch.Tensor]) -> None:
    sampled, worth = torch.tensor([[1, 4, -100], [2, 0, 3]]), torch.tensor([0.5, 2.0])
    each = [self_critical([state], identity, sampled, worth).item() for state in states]
    both = self_critical(states, identity, sampled, worth, weights=[1.0, 0.0, 3.0], reduction="mean")
    assert both.item() == pytest.approx((each[0] + 3 * each[2]) / 4, rel=1e-5)  # float32 sums in another order
    with pytest.raises(KnobError, match="One per row|one per row"):
        self_critical(states, identity, sampled, torch.ones(3))


def test_agreement_by_hand() -> None:
    """Three layers, two places: cosines of layers 1 and 2 are 0.6 and 1; layer 2 says what layer 3 says at the second place only."""
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    second = torch.tensor([[[0.6, 0.8], [0.0, 3.0]]])
    last = torch.tensor([[[5.0, 0.0], [0.0, 1.0]]])
    asked = torch.tensor([[True, True]])
    chance = [1 / (1 + math.exp(-10 * (cosine - 0.8))) for cosine in (0.6, 1.0)]
    expected = (-math.log(1 - chance[0]) - math.log(chance[1])) / 2
    assert float(agreement([first, second, last], identity, asked, 10.0, 0.8)) == pytest.approx(expected, rel=1e-5)
    # The first place not asked: the second alone counts. The last layer's own cosine never does: there is nothing left to leave.
    assert float(agreement([first, second, last], identity, ~torch.tensor([[True, False]]), 10.0, 0.8)) == pytest.approx(
        -math.log(chance[1]), rel=1e-5
    )
    assert (
        float(agreement([first, second, last], identity, ~asked, 10.0, 0.8))
        == float(agreement([first, last], identity, asked, 10.0, 0.8))
        == 0
    )


def test_agreement_makes_states_alike_where_the_choice_is_made_and_unlike_where_it_is_not() -> None:
    torch.manual_seed(0)
    first = torch.randn(1, 2, 4)
    second, last = (first + 0.5 * torch.randn(1, 2, 4)).requires_grad_(), torch.zeros(1, 2, 4)
    last[0, 0, int(second[0, 0].argmax())] = 1  # the same choice
    last[0, 1, int(second[0, 1].argmin())] = 1  # another one
    agreement([first, second, last], identity, torch.ones(1, 2, dtype=torch.bool), 10.0, 0.8).backward()
    with torch.no_grad():
        assert second.grad is not None
        moved = F.cosine_similarity(first, second - 0.01 * second.grad, dim=-1) - F.cosine_similarity(first, second, dim=-1)
    assert moved[0, 0] > 0 > moved[0, 1]


def test_distilled_by_hand() -> None:
    """The teacher gives 1/2 and 1/2; layer 1 says 3/4 and 1/4, layer 2 what the teacher says. The place that is not asked is wild."""
    teacher = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]], requires_grad=True)
    states = [torch.tensor([[[math.log(3.0), 0.0], [0.0, 7.0]]], requires_grad=True), torch.tensor([[[5.0, 5.0], [0.0, 7.0]]])]
    asked = torch.tensor([[True, False]])
    one = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    loss = distilled(states, identity, teacher, asked)
    assert loss.item() == pytest.approx(one / 2)
    assert distilled(states, identity, teacher, asked, weights=[3.0, 1.0]).item() == pytest.approx(one * 3 / 4)
    assert distilled(states, identity, teacher, ~asked & asked).item() == 0
    loss.backward()
    assert teacher.grad is None and states[0].grad is not None and bool((states[0].grad[0, 1] == 0).all())


def test_the_worst_labels_of_each_layer_are_left_out_by_hand() -> None:
    """Two classes, five labels of class 0; chances of it 1/2, 1/4, 1/8, 3/4, 7/8. A layer's worst fifth, then its worst half, goes."""
    chances = torch.tensor([1 / 2, 1 / 4, 1 / 8, 3 / 4, 7 / 8])
    first = torch.stack([chances, 1 - chances], -1).log()[None]
    second = first.flip(1)  # its worst stands elsewhere
    losses = sorted(-math.log(chance) for chance in chances.tolist())
    labels = torch.zeros(1, 5, dtype=torch.long)
    for share, kept in ((0.2, 4), (0.5, 2), (0.99, 1), (0.0, 5)):
        expected = 2 * sum(losses[:kept]) / kept
        assert float(layerwise([first, second], identity, labels, drop_worst=share)) == pytest.approx(expected)
    with pytest.raises(KnobError, match="drop_worst is 1.0"):
        layerwise([first], identity, labels, drop_worst=1.0)


def test_the_last_alone_is_the_plain_loss(states: list[torch.Tensor]) -> None:
    assert layer_weights(3, "last") == [0, 0, 3]
    plain = F.cross_entropy(states[-1].flatten(0, 1), LABELS.flatten(), ignore_index=-100)
    assert torch.allclose(layerwise(states, identity, LABELS, weights="last", reduction="mean"), plain)


@pytest.mark.parametrize("kind", ["labels", "rewards"])
def test_the_lean_head_gives_the_same_loss_and_gradients_and_is_read_out_again(states: list[torch.Tensor], kind: str) -> None:
    head = torch.nn.Linear(5, 7)
    calls: list[int] = []

    def readout(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(len(hidden))
        return head(hidden)

    found = []
    for lean in (False, True):
        head.zero_grad()
        for state in states:
            state.grad = None
        calls.clear()
        if kind == "labels":
            loss = layerwise(states, readout, LABELS, smoothing=0.1, drop_worst=0.4, lean=lean)
        else:
            loss = self_critical(states, readout, LABELS, torch.tensor([1.0, -2.0]), lean=lean)
        loss.backward()
        assert len(calls) == (5 if lean else 3)  # all but the last of three again
        found.append([loss.detach(), head.weight.grad, *(state.grad for state in states)])
    assert all(torch.allclose(*pair) for pair in zip(*found, strict=True))


def test_the_constraint_may_be_given_for_the_labels_that_count(states: list[torch.Tensor]) -> None:
    whole = torch.rand(2, 3, 5) < 0.5
    whole.scatter_(-1, LABELS.clamp(min=0)[..., None], True)
    assert torch.equal(
        layerwise(states, identity, LABELS, allowed=whole), layerwise(states, identity, LABELS, allowed=whole[LABELS != -100])
    )
