"""How good written texts are: the number that a solution comes to, and how far two models write the same tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .metrics import accuracy, paired

_NUMBER = re.compile(r"(?<![\w.)])-?\d+(?:,\d{3})*(?:\.\d+)?|(?<![\w)])-?\.\d+")


def last_number(text: str) -> str | None:
    """The last number in a text, without separators and idle zeros; None where there is none. In GSM8K's solutions it follows '####'.

    >>> last_number("6 * 3 = <<6*3=18>>18, so she makes $1,018.50."), last_number("from 5-3"), last_number("-0.0 degrees"), last_number("none")
    ('1018.5', '3', '0', None)
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    whole, _, part = found[-1].replace(",", "").lstrip("-").partition(".")
    number = f"{whole.lstrip('0') or '0'}.{part}".rstrip("0").rstrip(".")
    return f"-{number}" if found[-1].startswith("-") and number != "0" else number


def number_accuracy(answers: Sequence[str], truths: Sequence[str | None]) -> float:
    """Share of answers whose last number is the true one, in 0..100; an answer without a number is wrong. GSM8K's figure.

    >>> number_accuracy(["That makes 18 eggs.", "It is 5."], ["18", "4"])
    50.0
    """
    return accuracy([last_number(answer) or "" for answer in answers], list(truths))


@dataclass(frozen=True)
class Agreement:
    """How far two models write the same tokens, each figure in 0..1, the mean over prompts.

    same: texts that are equal; prefix: share of the wanted text before the first difference; places: share of places, up to the longer of the
    two texts, with the same token. After a first difference two texts go apart, so that `prefix` is strict and `places` is mild by luck.
    """

    same: float
    prefix: float
    places: float


def agreement(ours: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Agreement:
    """Token ids of each prompt's continuation, ours and those that are wanted (the model's own at full depth). Two empty texts agree.

    >>> agreement([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]])
    Agreement(same=0.5, prefix=0.75, places=0.875)
    """
    paired(ours, wanted)
    figures = [_agreed(list(left), list(right)) for left, right in zip(ours, wanted, strict=True)]
    same, prefix, places = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    return Agreement(same, prefix, places)


def _agreed(ours: list[int], wanted: list[int]) -> tuple[float, float, float]:
    equal = [a == b for a, b in zip(ours, wanted, strict=False)]
    first = next((place for place, fits in enumerate(equal) if not fits), len(equal))
    longest = max(len(ours), len(wanted))
    if not longest:
        return 1.0, 1.0, 1.0
    return float(ours == wanted), first / len(wanted) if wanted else 0.0, sum(equal) / longest
