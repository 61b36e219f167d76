"""Captions against references by overlap of words: ROUGE-L, and METEOR as far as it goes without Java.

Missing, and only to be had from the official scorers (`official`): METEOR's stages for synonyms and paraphrases with its tuned weights, and
SPICE, which needs a parser of scenes. Figures are in 0..100, one for each item, so that `metrics.bootstrap` gives their intervals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from exitwise.errors import InputError

from .metrics import words

BETA = 1.2  # ROUGE-L: how much recall weighs over precision, as in the public caption evaluation
ALPHA, GAMMA, POWER = 0.9, 0.5, 3.0  # METEOR (Lavie and Agarwal 2007): recall's weight, the greatest penalty, how fast it rises
MISSING = {"METEOR": "its stages for synonyms and paraphrases (--official)", "SPICE": "all of it (--official)"}
_VOWEL = re.compile(r"[aeiou]|(?<=[^aeiou])y")


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each candidate (Lin 2004): F of the longest common subsequence, from the best precision and the best recall over the
    references, beta 1.2.

    >>> round(rouge_l(["a dog runs"], [["the dog runs fast"]])[0], 2)
    55.71
    """
    _matched(candidates, references)
    return [_rouge(words(text), [words(other) for other in others]) for text, others in zip(candidates, references, strict=True)]


def _rouge(mine: list[str], others: Sequence[list[str]]) -> float:
    shared = [common(mine, other) for other in others]
    precision = max(n / len(mine) for n in shared) if mine else 0.0
    recall = max((n / len(other) for n, other in zip(shared, others, strict=True) if other), default=0.0)
    if not precision or not recall:
        return 0.0
    return 100 * (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """Words of the longest common subsequence.

    >>> common("a b c d".split(), "b x d a".split())
    2
    """
    row = [0] * (len(second) + 1)
    for word in first:
        corner = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = corner + 1 if word == other else max(row[place], row[place - 1])
            corner = above
    return row[-1]


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """METEOR of each candidate against its best reference, stages 'exact' and 'stem' alone (Lavie and Agarwal 2007).

    P R / (alpha P + (1 - alpha) R), less a penalty gamma (chunks / matches)^3, alpha 0.9, gamma 0.5. Words are matched from left to right,
    going on with a chunk where that is possible. The official 1.5 is another measure: it has synonyms and paraphrases, weighs function
    words less, was tuned to other weights, and sums up counts over the whole set, where here items are averaged. The scales do not compare:
    on the embedded sample of captions (71 items, the shipped model at full depth) this gives 28.07, the official program 13.09; the ranks
    of items correlate with 0.74 (Spearman).

    >>> round(meteor(["the cat sat"], [["the cat sat"]])[0], 2)
    98.15
    """
    _matched(candidates, references)
    return [max(_meteor(words(text), words(other)) for other in others) for text, others in zip(candidates, references, strict=True)]


def _meteor(mine: list[str], other: list[str]) -> float:
    pairs = aligned(mine, other)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(mine), len(pairs) / len(other)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    chunks = 1 + sum((a + 1, b + 1) != after for (a, b), after in zip(pairs, pairs[1:], strict=False))
    return 100 * mean * (1 - GAMMA * (chunks / len(pairs)) ** POWER)


def aligned(mine: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Places (mine, other) of the words that are matched: equal ones first, then those of one stem.

    >>> aligned(["dogs", "run"], ["a", "dog", "run"])
    [(0, 1), (1, 2)]
    """
    found: dict[int, int] = {}
    for told, there in ((list(mine), list(other)), ([stem(w) for w in mine], [stem(w) for w in other])):
        for place, word in enumerate(told):
            free = [at for at, each in enumerate(there) if each == word and at not in found.values()]
            if place not in found and free:
                after = found.get(place - 1, -2) + 1
                found[place] = after if after in free else free[0]
    return sorted(found.items())


def stem(word: str) -> str:
    """The word without a plural's s, -ed or -ing: the first step of Porter's stemmer (1980), and no other.

    >>> [stem(w) for w in ("ponies", "dogs", "running", "hoped", "sing", "glass")]
    ['poni', 'dog', 'run', 'hope', 'sing', 'glass']
    """
    for ending, kept in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(ending):
            word = word[: len(word) - len(ending)] + kept if len(word) > len(ending) else word
            break
    for ending in ("ed", "ing"):
        root = word.removesuffix(ending)
        if root != word and _VOWEL.search(root):
            return _mended(root)
    return word


def _mended(root: str) -> str:
    """A root after -ed or -ing went: hop(p), fil(e), conflat(e)."""
    if root.endswith(("at", "bl", "iz")):
        return root + "e"
    if len(root) > 1 and root[-1] == root[-2] and root[-1] not in "aeioulsz":
        return root[:-1]
    short = re.fullmatch(r"[^aeiou]*[aeiouy][^aeiouywx]", root)
    return root + "e" if short else root


def _matched(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates or not all(references):
        raise InputError(f"{len(candidates)} captions were given for {len(references)} items. Give one for each, and references for all.")
