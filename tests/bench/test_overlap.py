"""ROUGE-L, METEOR's two stages and Spearman, by hand; and intervals for figures that are no means."""

import pytest

from exitwise.bench.metrics import accuracy, bootstrap_of, f1, ranks, spearman
from exitwise.bench.overlap import MISSING, aligned, common, meteor, rouge_l, stem
from exitwise.errors import InputError


def test_rouge_takes_the_best_precision_and_the_best_recall_over_the_references():
    """a b c against 'a b c d e f' (P 1, R 1/2) and 'a x' (P 1/3, R 1/2): P 1, R 1/2, F = 2.44 * 0.5 / (0.5 + 1.44) = 0.62887."""
    assert rouge_l(["aa bb cc"], [["aa bb cc dd ee ff", "aa xx"]]) == [pytest.approx(62.8866, abs=1e-4)]
    assert rouge_l(["dog dog"], [["cat"]]) == [0.0] and rouge_l([""], [["cat"]]) == [0.0]
    assert rouge_l(["a dog"], [["a dog"]]) == [pytest.approx(100.0)]


def test_a_subsequence_need_not_be_together_but_in_order():
    assert common(list("axbyc"), list("abc")) == 3 and common(list("cba"), list("abc")) == 1


def test_meteor_by_hand():
    """'the dog runs' against 'the big dog ran': 2 of 3 and 2 of 4 words in 2 chunks: P R / (0.9 P + 0.1 R) = (1/3) / 0.65 = 0.51282,
    penalty 0.5 (2/2)^3 = 0.5: 25.641. In one chunk of two, 'big dog': penalty 0.5 (1/2)^3 = 0.0625."""
    assert meteor(["the dog runs"], [["the big dog ran"]]) == [pytest.approx(25.641, abs=1e-3)]
    assert meteor(["big dog runs"], [["the big dog ran"]]) == [pytest.approx(100 * (1 / 3) / 0.65 * 0.9375, abs=1e-3)]
    assert meteor(["cat"], [["dog"]]) == [0.0]
    assert meteor(["the dogs"], [["cats", "the dog"]])[0] > 90  # by the stem, and of the best reference


def test_words_are_matched_once_equal_ones_first_and_in_a_row_where_that_is_possible():
    assert aligned(["the", "the"], ["the"]) == [(0, 0)]
    assert aligned(["dogs", "dog"], ["dog", "dogs"]) == [(0, 1), (1, 0)]
    assert aligned(["a", "b"], ["b", "a", "b"]) == [(0, 1), (1, 2)]


def test_the_stem_is_the_first_step_of_porters():
    words = {"caresses": "caress", "ponies": "poni", "cats": "cat", "plastered": "plaster", "motoring": "motor", "sing": "sing",
             "hopping": "hop", "falling": "fall", "filing": "file", "conflated": "conflate", "bled": "bled"}  # fmt: skip
    assert {word: stem(word) for word in words} == words


def test_what_is_missing_is_said():
    assert set(MISSING) == {"METEOR", "SPICE"}
    for wrong in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(InputError):
            rouge_l(*wrong)


def test_spearman_by_hand():
    """Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8; turned round -1; ties share ranks; a constant has no order."""
    assert spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(80.0)
    assert spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-100.0)
    assert spearman([1, 1, 2], [5, 5, 5]) == 0.0 and ranks([3, 1, 3, 2]) == [3.5, 1.0, 3.5, 2.0]


def test_an_interval_of_a_figure_that_is_no_mean():
    answers, truths = [1, 1, 0, 0] * 20, [1, 0, 1, 0] * 20
    held = bootstrap_of(f1, answers, truths, seed=1)
    assert held.mean == pytest.approx(50.0) and held.low < 50 < held.high and held == bootstrap_of(f1, answers, truths, seed=1)
    same = bootstrap_of(accuracy, [1] * 9, [1] * 9)
    assert (same.low, same.mean, same.high) == (100, 100, 100)
