"""The figures are right: goldens by hand arithmetic, never from our own output."""

from __future__ import annotations

import math
import random

import pytest

from exitwise.bench import metrics
from exitwise.errors import InputError


def test_words_follow_the_penn_treebank_without_punctuation() -> None:
    assert metrics.words('Two dogs, running "fast" -- isn\u2019t it?') == ["two", "dogs", "running", "fast", "is", "n't", "it"]
    assert metrics.words(" . ! ") == []


def test_cider_d_of_a_caption_that_repeats_its_only_reference_is_the_most_there_is() -> None:
    score = metrics.cider(["a red dog runs here", "two men sit down now"], [["a red dog runs here"], ["two men sit down now"]])
    assert score.items == pytest.approx((1000.0, 1000.0))


def test_cider_by_hand() -> None:
    # Items: "a b" against "a c"; "d e" against "d e". N = 2, and each n-gram stands in one item: idf = ln 2 for all.
    # Item 1, n = 1: one of two words shared, cosine 1/2; n = 2: 0; n = 3, 4 do not exist: 0. Mean over n: 1/8.
    # Item 2: n = 1 and 2 are equal: (1 + 1 + 0 + 0) / 4 = 1/2.
    score = metrics.cider(["a b", "d e"], [["a c"], ["d e"]])
    assert score.items == pytest.approx((125.0, 500.0))
    assert score.score == pytest.approx(312.5)


def test_cider_weighs_down_what_every_item_says() -> None:
    # "a" stands in both items: idf = ln(2/2) = 0, so only "b" and "c" count, and "a x" shares nothing of weight with "a b".
    score = metrics.cider(["a x", "a c"], [["a b"], ["a c"]])
    assert score.items[0] == 0
    assert score.items[1] == pytest.approx(500.0)


def test_the_length_penalty_and_the_clip_tell_cider_d_from_cider() -> None:
    # "b b" against "b": tf 2 against 1. Plain: cosine 1 for n = 1, so 1/4. Clipped: min(2, 1) * 1 / (2 * 1) = 1/2, times exp(-1 / 72)
    # for the difference of one bigram, over 4.
    candidates, references = ["b b", "c"], [["b"], ["c"]]
    assert metrics.cider(candidates, references, clipped=False).items[0] == pytest.approx(250.0)
    assert metrics.cider(candidates, references).items[0] == pytest.approx(1000 * 0.5 * math.exp(-1 / 72) / 4)


def test_references_are_averaged() -> None:
    both = metrics.cider(["a b", "d e"], [["a b", "x y"], ["d e"]])
    assert both.items[0] == pytest.approx(250.0)  # (1/2 + 0) / 2 of the full scale


def test_bleu_by_hand() -> None:
    # "the the cat" against "the cat sat": words clipped 2 of 3; bigrams "the the", "the cat": 1 of 2; no trigram. Equal length: no penalty.
    one, two, three, four = metrics.bleu(["the the cat"], [["the cat sat"]])
    assert one == pytest.approx(100 * 2 / 3)
    assert two == pytest.approx(100 * math.sqrt(2 / 3 * 1 / 2))
    assert three == four == 0


def test_bleu_counts_over_the_corpus_and_punishes_shortness() -> None:
    # 3 words said where 5 are wanted, all right: exp(1 - 5 / 3).
    one, *_ = metrics.bleu(["a b", "c"], [["a b d"], ["c e"]])
    assert one == pytest.approx(100 * math.exp(1 - 5 / 3))
    # The nearest reference counts; of two equally near the shorter.
    one, *_ = metrics.bleu(["a b c"], [["a b", "a b c d"]])
    assert one == pytest.approx(100.0)


def test_accuracy() -> None:
    assert metrics.accuracy(["yes", "no", "red", "no"], ["yes", "no", "blue", "no"]) == 75.0


def test_bootstrap_is_seeded_and_covers_the_mean_as_often_as_it_says() -> None:
    draw = random.Random(5)
    hits = 0
    for seed in range(200):
        sample = [draw.gauss(3.0, 1.0) for _ in range(60)]
        interval = metrics.bootstrap(sample, share=0.9, draws=300, seed=seed)
        assert interval.low < interval.mean < interval.high
        hits += interval.low <= 3.0 <= interval.high
    assert 164 <= hits <= 194  # binomial: 200 draws at about 0.88 have a spread of 4.6; the bounds are more than 2.5 of it away
    assert metrics.bootstrap([1.0, 2.0, 5.0], seed=3) == metrics.bootstrap([1.0, 2.0, 5.0], seed=3)
    assert metrics.bootstrap([2.0] * 9) == metrics.Interval(2.0, 2.0, 2.0)


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    draw = random.Random(1)
    base = [draw.gauss(0, 10) for _ in range(200)]
    better = [value + 0.5 + draw.gauss(0, 0.1) for value in base]
    interval = metrics.bootstrap_difference(better, base)
    assert 0.4 < interval.low < interval.high < 0.6


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.cider([], []),
        lambda: metrics.bleu(["a"], []),
        lambda: metrics.accuracy(["a"], ["a", "b"]),
        lambda: metrics.bootstrap([]),
        lambda: metrics.bootstrap([1.0], share=1.0),
    ],
)
def test_what_cannot_be_judged_is_said(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]


def test_one_text_scored_alone_is_one_item_of_the_whole() -> None:
    candidates = ["a red dog runs", "two men sit on a bench", "a cat"]
    references = [["a red dog runs here", "the dog is red"], ["two men sit down", "men on a bench"], ["a cat sleeps", "one cat"]]
    scorer = metrics.CiderScorer(references)
    assert [scorer.score(text, place) for place, text in enumerate(candidates)] == list(metrics.cider(candidates, references).items)
    assert scorer.score("two men sit down", 1) > scorer.score(
        "two men sit down", 0
    )  # the frequencies are the collection's, the place counts


def test_word_errors_by_hand() -> None:
    """One word changed, one left out, one put in; case and punctuation do not count."""
    assert metrics.word_errors("The cat sat.", "the cat sat") == (0, 3)
    assert metrics.word_errors("the dog sat", "the cat sat") == (1, 3)
    assert metrics.word_errors("the sat", "the cat sat") == (1, 3)
    assert metrics.word_errors("the big cat sat", "the cat sat") == (1, 3)
    assert metrics.word_errors("", "the cat sat") == (3, 3) and metrics.word_errors("the cat", "") == (2, 0)
    assert metrics.word_errors("b a", "a b") == (2, 2)  # no exchange of neighbours: two changes, or one out and one in
    assert metrics.word_errors("d e a b c", "a b c d e") == (4, 5)


def test_word_error_rate_is_over_all_words_and_may_pass_a_hundred() -> None:
    assert metrics.wer(["a b c d e f", "x"], ["a b c d e f", "a b"]) == pytest.approx(100 * 2 / 8)
    assert metrics.wer(["a b c d"], ["x"]) == 400.0
    with pytest.raises(InputError, match="no word"):
        metrics.wer(["a"], ["..."])


def test_word_errors_are_an_edit_distance() -> None:
    """Against all ways to edit, by recursion, on short random texts."""

    def least(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(least(a[1:], b) + 1, least(a, b[1:]) + 1, least(a[1:], b[1:]) + (a[0] != b[0]))

    luck = random.Random(0)
    for _ in range(60):
        a, b = ([luck.choice("xyz") for _ in range(luck.randint(0, 5))] for _ in range(2))
        assert metrics.word_errors(" ".join(a), " ".join(b)) == (least(a, b), len(b))
