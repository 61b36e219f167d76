"""Fronts and paired intervals, against cases worked by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from exitwise.bench import compare


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(compare).failed == 0


def test_a_point_beaten_on_both_sides_is_not_on_the_front() -> None:
    assert compare.front([(2.0, 0.9), (1.0, 0.9), (3.0, 0.95), (2.5, 0.91)]) == [1, 3, 2]
    assert compare.front([]) == []


def test_the_best_at_a_cost_is_none_where_all_cost_more_and_the_cheaper_of_equals() -> None:
    assert compare.best_at_cost([(2.0, 0.9)], 1.0) is None
    assert compare.best_at_cost([(2.0, 0.9), (1.0, 0.9)], 3.0) == 1


def test_pairs_narrow_the_interval_and_a_constant_difference_has_none() -> None:
    base = np.random.default_rng(0).random(200)
    found = compare.difference(base + 0.1, base)
    assert found.value == pytest.approx(0.1) and found.high - found.low == pytest.approx(0, abs=1e-9)
    halved = compare.ratio(base / 2, base)
    assert halved.value == pytest.approx(0.5) and halved.low == pytest.approx(0.5) == halved.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 draws of 60 items with a true difference of 0.2; 95 % intervals. Binomial: fewer than 175 hits has p below 1e-4."""
    hits = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0.2, 1.0, 60)
        found = compare.difference(noise, np.zeros(60), seed=seed, draws=400)
        hits += found.low <= 0.2 <= found.high
    assert 175 <= hits < 200


def test_a_ratio_to_nothing_is_not_a_number_and_unequal_lengths_are_refused() -> None:
    assert np.isnan(compare.ratio([1.0, 2.0], [0.0, 0.0]).value)
    with pytest.raises(ValueError, match="paired"):
        compare.ratio([1.0], [1.0, 2.0])
