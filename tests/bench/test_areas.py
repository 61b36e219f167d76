"""Areas under fronts: by hand, paired, over the range that all reach; and what the bootstrap says where the truth is known."""

import numpy as np
import pytest

from exitwise.bench.areas import Front, common, compared, drawn, gain
from exitwise.errors import InputError

FULL = [100.0, 0.0, 100.0, 100.0]


def front(marks, paid, full=FULL):
    """A front whose items all pay the same at a setting, of a cost of 10 at full depth."""
    rows = [[p] * len(full) for p in paid]
    return Front.of(marks, rows, [[10] * len(full)] * len(rows), full)


def test_an_area_by_hand():
    """Quality 25 at cost 0.5, then straight to 75 at 1: mean 50 over 0.5..1; over 0.75..1 from 50 to 75: 62.5."""
    one = front([[100, 0, 0, 0]], [5])
    assert one.cost()[0].tolist() == [0.5, 1.0] and one.quality()[0].tolist() == [25, 75]
    assert one.area(0.5, 1.0)[0] == pytest.approx(50.0) and one.area(0.75, 1.0)[0] == pytest.approx(62.5)


def test_a_cost_is_a_ratio_of_sums_so_that_long_items_weigh_more():
    """Items of 1 and 3 steps at depths 1 and 2 of 4: (1 + 6) / (4 + 12), and not the mean of 1/4 and 1/2."""
    assert Front.of([[1, 1]], [[1, 6]], [[4, 12]], [1, 1]).cost()[0, 0] == 7 / 16


def test_the_range_begins_where_the_dearest_front_begins():
    cheap, dear, empty = front([[0] * 4], [2]), front([[0] * 4], [6]), Front.of([], [], [], FULL)
    assert common({"a": cheap, "b": dear, "c": empty}) == (0.6, 1.0)
    assert common({"a": front([[0] * 4], [9.9])}) is None
    assert compared({"c": empty})["areas"] == {}


def test_differences_are_those_of_the_areas_and_the_better_stands_first():
    """Over 0.5..1, the one keeps 75 throughout (1 of full depth's), the other rises from 25 (50 / 75): they differ by a third."""
    found = compared({"rising": front([[100, 0, 0, 0]], [5]), "flat": front([FULL], [5])})
    assert list(found["areas"]) == ["flat", "rising"] and found["range"] == [0.5, 1.0]
    assert found["areas"]["flat"]["value"] == pytest.approx(1.0) and found["areas"]["rising"]["value"] == pytest.approx(2 / 3)
    (pair,) = found["pairs"]
    assert (pair["better"], pair["worse"], pair["value"]) == ("flat", "rising", pytest.approx(1 / 3))
    assert gain(found, "rising", ["flat"])["value"] == pytest.approx(-1 / 3)
    assert gain(found, "flat", ["rising", "unknown"])["rival"] == "rising" and gain(found, "flat", []) is None


def test_items_are_paired():
    """Two fronts that agree on every item differ by exactly nothing in every sample; unpaired ones would spread."""
    dice = np.random.default_rng(0)
    full = (100.0 * (dice.random(200) < 0.8)).tolist()
    marks = [(100.0 * (dice.random(200) < 0.6)).tolist()]
    (pair,) = compared({"a": front(marks, [5], full), "b": front(marks, [5], full)})["pairs"]
    assert (pair["value"], pair["low"], pair["high"]) == (0.0, 0.0, 0.0)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Truth: quality 60 and 50 at cost 0.5, 80 at full depth, so areas 70 and 65 of 80. 200 draws of 150 items; 95 % nominal, and
    a binomial slack of three standard errors (1.5 points each)."""
    missed = 0
    for turn in range(200):
        dice = np.random.default_rng(turn)
        full, a, b = (100.0 * (dice.random(150) < p) for p in (0.8, 0.6, 0.5))
        found = compared({"a": front([a], [5], full.tolist()), "b": front([b], [5], full.tolist())}, seed=turn, draws=200)
        told = gain(found, "a", ["b"])
        missed += not told["low"] <= 5 / 80 <= told["high"]
    assert missed / 200 <= 0.05 + 3 * 0.0154


def test_samples_repeat_and_have_all_items():
    assert (drawn(50, 20, 3) == drawn(50, 20, 3)).all() and (drawn(50, 20, 3).sum(1) == 50).all()


def test_unlike_items_are_refused():
    with pytest.raises(InputError, match="same items"):
        Front.of([[1, 1]], [[1, 1], [1, 1]], [[1, 1]], [1, 1])
