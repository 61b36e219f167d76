"""How exits are weighed: each formula against figures worked out by hand from the papers' definitions."""

import doctest

import pytest

from exitwise.errors import DepthError, KnobError
from exitwise.train.language import drafting, losses, noise, objectives, weights


@pytest.mark.parametrize("module", [weights, noise, drafting, losses, objectives])
def test_worked_numbers(module) -> None:
    import torch

    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted >= 1 and found.failed == 0


def test_the_scaled_weights_are_the_papers() -> None:
    """e(l) for L = 4, e_scale 0.2: 0, 0.2, 0.6 and 3 + 0.2 * (0 + 1 + 2) = 3.6; their sum is 4.4. Depth 1 weighs nothing."""
    found = weights.scaled(4, 0.2, {1, 2, 3, 4})
    assert found == pytest.approx({2: 0.2 / 4.4, 3: 0.6 / 4.4, 4: 3.6 / 4.4})
    assert weights.scaled(4, 0.2, {2}) == pytest.approx({2: 0.2 / 3.8, 4: 3.6 / 3.8})  # only the active ones share
    assert weights.scaled(4, 0.0, {1, 2, 3}) == {4: 1.0}


@pytest.mark.parametrize("layers", [3, 6, 30])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_scaled_weights_equal_a_loop_over_the_definition(layers: int, scale: float) -> None:
    e = [scale * sum(range(layer + 1)) if layer < layers - 1 else (layers - 1) + scale * sum(range(layers - 1)) for layer in range(layers)]
    for step in range(2 * layers):
        active = weights.rotating(step, layers, 3)
        chosen = [layer for layer in range(layers) if layer + 1 in active]
        total = sum(e[layer] for layer in chosen)
        assert weights.scaled(layers, scale, active) == pytest.approx({layer + 1: e[layer] / total for layer in chosen if e[layer]})


def test_the_rotation_sees_every_exit_once_in_its_turn() -> None:
    turns = [weights.rotating(step, 8, 4) - {8} for step in range(4)]
    assert turns == [{1, 5}, {2, 6}, {3, 7}, {4}]
    assert weights.rotating(7, 8, 4) == {4, 8}


def test_the_gradual_curriculum_has_all_from_the_half_on() -> None:
    sizes = [len(weights.gradual(step, 6, 120)) for step in range(120)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[49] == 5 and sizes[50] == 6
    assert weights.gradual(10, 6, 120) == {5, 6}  # the deepest first


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: weights.uniform((0, 2), 4), DepthError, r"\[0, 2\] are not within 1..4"),
        (lambda: weights.uniform((), 4), DepthError, "Give one or more"),
        (lambda: weights.two_exits(5, 4), DepthError, r"\[5\] are not within 1..4"),
        (lambda: weights.normalised({1: 0.0}), KnobError, "above 0"),
        (lambda: noise.dropout_rates(4, 1.0), KnobError, "0 to below 1"),
        (lambda: noise.layers_run(0, 4, 5, 2, 8), KnobError, "5 to 2 layers"),
        (lambda: noise.scheduled_layers(0, 4, 4, 1, 8, warm=2), KnobError, "warm=2"),
    ],
)
def test_what_cannot_be_is_refused(make, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        make()
