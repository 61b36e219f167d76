"""Quality figures, written afresh: CIDEr and CIDEr-D, BLEU, word error rate, accuracy, F1, Matthews, Spearman, and bootstrap intervals."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exitwise.errors import InputError

Grams = Counter[tuple[str, ...]]
Vector = dict[tuple[str, ...], float]
LONGEST = 4  # n-grams of 1..4 words
KEPT = 10_000  # items whose references a scorer keeps weighed: all of a benchmark, some of a large training

_WORDS = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[.,:/-][^\W_]+)*")
_NEGATION = re.compile(r"(?<=[^\W\d_])n't\b")


def words(text: str) -> list[str]:
    """Lower-case words in the manner of the Penn Treebank without punctuation: "isn't" is two words, "dog's" too, "t-shirt" is one.

    >>> words("A dog's t-shirt isn't red .")
    ['a', 'dog', "'s", 't-shirt', 'is', "n't", 'red']
    """
    split = _NEGATION.sub(" n't", text.lower().replace("\u2019", "'"))
    return _WORDS.findall(split)


def grams(tokens: Sequence[str], longest: int = LONGEST) -> Grams:
    """How often each n-gram of 1..longest words occurs."""
    return Counter(tuple(tokens[start : start + n]) for n in range(1, longest + 1) for start in range(len(tokens) - n + 1))


@dataclass(frozen=True)
class Cider:
    """`score`, the mean over items, and `items`, one figure each; 100 times the usual scale of 0..10, so that 1.10 reads 110."""

    score: float
    items: tuple[float, ...]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0, clipped: bool = True) -> Cider:
    """CIDEr-D (clipped, with the length penalty exp(-diff^2 / 2 sigma^2)), or plain CIDEr (Vedantam et al. 2015, arXiv:1411.5726).

    The document frequency of an n-gram is the number of items one of whose references has it. One single item has idf 0 everywhere, and so
    scores 0. Both kinds as in the public `pycocoevalcap` (CIDEr-D) and the paper (CIDEr), multiplied by 100 at the end.
    """
    paired(candidates, references)
    scorer = CiderScorer(references, sigma, clipped)
    items = tuple(scorer.score(candidate, place) for place, candidate in enumerate(candidates))
    return Cider(sum(items) / len(items), items)


class CiderScorer:
    """CIDEr of one text at a time, with document frequencies from these references: a metric, or the reward of a training.

    references: the texts of every item. `score` is on the scale of `cider`, and equals its figure where all items are the same.
    corpus: other references to take the document frequencies from, so that the figure of an item does not depend on the others.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        sigma: float = 6.0,
        clipped: bool = True,
        corpus: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.sigma, self.clipped = sigma, clipped
        self._known, counts = references, references if corpus is None else corpus
        self._frequency: Counter[tuple[str, ...]] = Counter()
        for texts in counts:
            self._frequency.update(set().union(*(grams(words(text)) for text in texts)))
        self._log_items = math.log(len(counts))
        self._references: dict[int, list[_Weighted]] = {}

    def score(self, candidate: str, place: int) -> float:
        """How well the candidate fits the references of item number `place`."""
        if place not in self._references:
            if len(self._references) >= KEPT:
                self._references.clear()
            self._references[place] = [self._weigh(grams(words(text))) for text in self._known[place]]
        mine, others = self._weigh(grams(words(candidate))), self._references[place]
        return 1000.0 * sum(_similarity(mine, other, self.sigma, self.clipped) for other in others) / len(others)

    def _weigh(self, counted: Grams) -> _Weighted:
        return _weighted(counted, self._frequency, self._log_items)


@dataclass(frozen=True)
class _Weighted:
    """tf-idf vectors of one text by n-gram length, their norms, and the number of words (bigrams, as the public code counts)."""

    vectors: tuple[Vector, ...]
    norms: tuple[float, ...]
    length: int


def _weighted(counted: Grams, frequency: Mapping[tuple[str, ...], int], log_items: float) -> _Weighted:
    vectors: tuple[Vector, ...] = tuple({} for _ in range(LONGEST))
    for gram, count in counted.items():
        vectors[len(gram) - 1][gram] = count * (log_items - math.log(max(1, frequency.get(gram, 0))))
    norms = tuple(math.sqrt(sum(value * value for value in vector.values())) for vector in vectors)
    return _Weighted(vectors, norms, sum(count for gram, count in counted.items() if len(gram) == 2))


def _similarity(mine: _Weighted, other: _Weighted, sigma: float, clipped: bool) -> float:
    """Mean over n of the cosine, in 0..1."""
    penalty = math.exp(-((mine.length - other.length) ** 2) / (2 * sigma**2)) if clipped else 1.0
    total = 0.0
    for left, right, left_norm, right_norm in zip(mine.vectors, other.vectors, mine.norms, other.norms, strict=True):
        if left_norm and right_norm:
            dot = sum((min(value, right[gram]) if clipped else value) * right[gram] for gram, value in left.items() if gram in right)
            total += penalty * dot / (left_norm * right_norm)
    return total / LONGEST


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """Corpus BLEU-1..4, each in 0..100 (Papineni et al. 2002); the reference nearest in length counts for the brevity penalty."""
    paired(candidates, references)
    matched, proposed = [0] * LONGEST, [0] * LONGEST
    said = wanted = 0
    for candidate, texts in zip(candidates, references, strict=True):
        tokens, others = words(candidate), [words(text) for text in texts]
        said += len(tokens)
        wanted += min((abs(len(other) - len(tokens)), len(other)) for other in others)[1]
        most: Grams = Counter()
        for other in others:
            most |= grams(other)
        for gram, count in grams(tokens).items():
            proposed[len(gram) - 1] += count
            matched[len(gram) - 1] += min(count, most[gram])
    brevity = 1.0 if said >= wanted else math.exp(1 - wanted / said) if said else 0.0
    out, log_sum = [], 0.0
    for n in range(LONGEST):
        log_sum += math.log(matched[n] / proposed[n]) if matched[n] else -math.inf
        out.append(100.0 * brevity * math.exp(log_sum / (n + 1)))
    return out[0], out[1], out[2], out[3]


def word_errors(candidate: str, reference: str) -> tuple[int, int]:
    """(least words to change, leave out or put in for the reference to come out, words of the reference), after `words`.

    >>> word_errors("Ask not what country do.", "ask not what your country can do")
    (2, 7)
    """
    said, wanted = words(candidate), words(reference)
    row = list(range(len(wanted) + 1))  # edits from what was said so far to each beginning of what is wanted
    for place, word in enumerate(said, 1):
        before, row = row, [place]
        for column, other in enumerate(wanted, 1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (word != other)))
    return row[-1], len(wanted)


def wer(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Word error rate over all items, in percent: edits for each word of the references; above 100 where more is put in than there is.

    Raises InputError where the references hold no word.
    """
    paired(candidates, references)
    pairs = [word_errors(candidate, reference) for candidate, reference in zip(candidates, references, strict=True)]
    if not (wanted := sum(count for _, count in pairs)):
        raise InputError("the references hold no word, so that no share of them can be wrong. Give transcripts.")
    return 100.0 * sum(edits for edits, _ in pairs) / wanted


def accuracy(answers: Sequence[object], truths: Sequence[object]) -> float:
    """Share of answers that equal the truth, in 0..100."""
    paired(answers, truths)
    return 100.0 * sum(answer == truth for answer, truth in zip(answers, truths, strict=True)) / len(answers)


def f1(answers: Sequence[int], truths: Sequence[int]) -> float:
    """F1 of class 1, in 0..100; 0 where class 1 was never right. GLUE's figure for MRPC.

    >>> round(f1([1, 1, 0, 0], [1, 0, 1, 1]), 4)
    40.0
    """
    paired(answers, truths)
    hit = sum(a == t == 1 for a, t in zip(answers, truths, strict=True))
    said = sum(a == 1 for a in answers) + sum(t == 1 for t in truths)
    return 200.0 * hit / said if hit else 0.0


def matthews(answers: Sequence[int], truths: Sequence[int]) -> float:
    """Matthews correlation of two classes, in -100..100; 0 where answers or truths have one class only. GLUE's figure for CoLA.

    >>> round(matthews([1, 1, 0, 0, 0], [1, 0, 1, 0, 0]), 4)
    16.6667
    """
    paired(answers, truths)
    tally = Counter(zip(answers, truths, strict=True))
    right, wrong = tally[1, 1] * tally[0, 0], tally[1, 0] * tally[0, 1]
    yes, no = tally[1, 1] + tally[1, 0], tally[0, 1] + tally[0, 0]
    true, false = tally[1, 1] + tally[0, 1], tally[1, 0] + tally[0, 0]
    scale = math.sqrt(yes * no * true * false)
    return 100.0 * (right - wrong) / scale if scale else 0.0


def spearman(values: Sequence[float], truths: Sequence[float]) -> float:
    """Spearman's rank correlation, in -100..100; ties share their mean rank; 0 where all values, or all truths, are one. GLUE's for STS-B.

    >>> round(spearman([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]), 4)
    80.0
    """
    paired(values, truths)
    first, second = ranks(values), ranks(truths)
    middle = (len(first) + 1) / 2
    above = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    scale = math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))
    return 100.0 * above / scale if scale else 0.0


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs.

    >>> ranks([10.0, 20.0, 10.0])
    [1.5, 3.0, 1.5]
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    out, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            out[place] = 1 + (start + end) / 2
        start = end + 1
    return out


@dataclass(frozen=True)
class Interval:
    """The mean of per-item figures, and the bounds between which resampled means fall with the asked share."""

    mean: float
    low: float
    high: float


def bootstrap(items: Sequence[float], share: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over items, seeded. For CIDEr give the per-item scores: the idf stays that of the whole set."""
    if not items:
        raise InputError("there is no item to resample. Give at least one.")
    if not 0 < share < 1:
        raise InputError(f"share is {share}, but must lie between 0 and 1, such as 0.95.")
    draw = random.Random(seed)
    means = sorted(sum(draw.choices(items, k=len(items))) / len(items) for _ in range(draws))
    tail = (1 - share) / 2
    low, high = (means[min(draws - 1, max(0, round(place * (draws - 1))))] for place in (tail, 1 - tail))
    return Interval(sum(items) / len(items), low, high)


def bootstrap_of(
    metric: Callable[[Sequence[Any], Sequence[Any]], float],
    answers: Sequence[Any],
    truths: Sequence[Any],
    share: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """The same for a figure that is no mean over items (F1, Matthews, Spearman, BLEU): items are drawn, and it is made of them anew."""
    paired(answers, truths)
    if not 0 < share < 1:
        raise InputError(f"share is {share}, but must lie between 0 and 1, such as 0.95.")
    draw, places = random.Random(seed), range(len(answers))
    figures = []
    for _ in range(draws):
        drawn = draw.choices(places, k=len(answers))
        figures.append(metric([answers[p] for p in drawn], [truths[p] for p in drawn]))
    figures.sort()
    tail = (1 - share) / 2
    low, high = (figures[min(draws - 1, max(0, round(place * (draws - 1))))] for place in (tail, 1 - tail))
    return Interval(metric(answers, truths), low, high)


def bootstrap_difference(
    first: Sequence[float], second: Sequence[float], share: float = 0.95, draws: int = 1000, seed: int = 0
) -> Interval:
    """The same for first minus second on the same items (paired): an interval without 0 tells the two apart."""
    paired(first, second)
    return bootstrap([a - b for a, b in zip(first, second, strict=True)], share, draws, seed)


def paired(left: Sequence[object], right: Sequence[object]) -> None:
    """Raises InputError where there is not one answer for each item, or no item at all."""
    if len(left) != len(right):
        raise InputError(f"{len(left)} answers were given for {len(right)} items. Give one for each.")
    if not left:
        raise InputError("there is no item to judge. Give at least one.")
