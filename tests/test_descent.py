"""The path of a promise: by hand, and on a source where the front of the grid is known to be worse."""

import numpy as np
import pytest
import torch

from exitwise.bench.promise import Truth
from exitwise.calibrate.descent import descent, smoothed
from exitwise.calibrate.guarantee import front
from exitwise.calibrate.ledger import DECODER, Ledger
from exitwise.calibrate.promised import promised


def test_a_mean_of_neighbours_by_hand():
    assert smoothed(np.array([3.0, 0, 0, 6])).tolist() == [2, 1, 2, 4]
    alone = np.zeros((3, 3, 1))
    alone[1, 1] = 9
    assert smoothed(alone) == pytest.approx(np.ones((3, 3, 1)))  # thirds of thirds are rounded
    assert alone.sum() == 9  # what was given stays


def test_the_step_that_saves_most_for_its_loss_by_hand():
    """Lowering the second threshold saves 4 for a loss of 0.1, the first 5 for 0.4; then only the first is left."""
    cost = np.array([[1.0, 5.0], [6.0, 10.0]])
    loss = np.array([[0.5, 0.4], [0.1, 0.0]])
    assert descent(loss, cost, 0.01) == [(1, 1), (1, 0), (0, 0)]
    assert descent(loss, cost, 10.0) == [(1, 1), (0, 1), (0, 0)]  # beside so much, what is added hardly counts


def test_what_lies_on_the_way_is_visited_unless_it_is_dearer_or_loses_more():
    """One threshold, one step from the top to the bottom. Of those between, 4 loses more than the end, 3 costs more than 5, 1 costs
    less than the end."""
    loss = np.array([0.2, 0.1, 0.1, 0.1, 0.3, 0.1, 0.0])
    cost = np.array([2.0, 1.9, 4.0, 8.0, 5.0, 7.0, 9.0])
    assert descent(loss, cost, 100.0) == [(6,), (5,), (2,), (1,)]
    cost[1] = 2.5
    assert descent(loss, cost, 100.0) == [(6,), (5,), (2,), (1,), (0,)]


def test_every_setting_of_a_path_is_below_the_one_before_and_cheaper():
    rng = np.random.default_rng(0)
    for shape in ((1,), (4, 1), (5, 4, 6)):
        for _ in range(20):
            loss, cost = rng.random(shape), rng.random(shape)
            path = descent(loss, cost, 0.01)
            assert path[0] == tuple(n - 1 for n in shape)
            for here, there in zip(path, path[1:], strict=False):
                lower = [a - b for a, b in zip(here, there, strict=True)]
                assert sorted(lower)[:-1] == [0] * (len(shape) - 1) and max(lower) > 0 and cost[there] < cost[here]


def luring(rows: int, seed: int) -> Ledger:
    """The image's exits lose a fifth, the text's 0.8 % and save much, the decoder's the fewer the surer they are. All else is right."""
    dice = torch.Generator().manual_seed(seed)
    sure = torch.rand(rows, 2, generator=dice)
    decoder = (sure[:, 1:] + 0.02 * torch.arange(4)).expand(3, 3, rows, 4).clone()
    encoder = {"image": 0.3 * torch.rand(rows, 3, generator=dice), "text": sure[:, :1].expand(rows, 3).clone()}
    right = torch.ones(3, 3, rows, 4, dtype=torch.bool)
    right[:2] &= torch.rand(rows, 1, generator=dice) > 0.2
    right[:, :2] &= torch.rand(rows, 1, generator=dice) > 0.008
    right &= (torch.rand(rows, 4, generator=dice) > 0.3 * (1 - sure[:, 1:])) | (torch.arange(4) == 3)
    return Ledger(("image", "text"), {"image": 3, "text": 3, DECODER: 4}, encoder, decoder, right)


def test_exits_that_save_for_little_are_promised():
    """Of 12 draws of 700 rows, the mean cost over that of the best setting in hindsight: 1.09. Without the stairs it was 1.14."""
    truth = Truth.of(luring(20_000, 10_000))
    _, best = truth.hindsight(0.03, 6, 20)
    found = [promised(luring(700, seed), 0.97, 0.9, encoder=6, decoder=20, seed=seed) for seed in range(100, 112)]
    assert sum(truth.cost(each.settings) for each in found) / len(found) < 1.1 * best


def test_a_lucky_setting_is_not_tested_before_those_around_it():
    """Each threshold loses the more the lower it is, but one setting far down seems to lose nothing: the front goes there at once."""
    steps = np.arange(7.0)[::-1]
    loss = 0.01 * (steps[:, None] + steps)
    cost = 20.0 - steps[:, None] - steps
    loss[2, 2] = 0.0
    order = [divmod(place, 7) for place in front(loss.ravel(), cost.ravel()).tolist()]
    assert order[:3] == [(6, 6), (2, 2), (0, 3)] and loss[0, 3] > 0.08
    path = descent(smoothed(loss), cost, 0.005)
    assert (2, 2) not in path and [round(100 * loss[place]) for place in path] == list(range(13))
