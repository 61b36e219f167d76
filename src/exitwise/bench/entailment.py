"""Visual entailment as OFA asks it: a row with a hypothesis becomes a prompt, three candidates and the right one of them.

A row is {"image", "hypothesis", "label": "entailment" | "neutral" | "contradiction", "caption"?}. MuE's scripts, like OFA's own, also
tell the model the image's caption (in SNLI-VE the premise): the figures are then not those of looking alone. It is asked for by name.
"""

from __future__ import annotations

import re

from exitwise.errors import InputError

ANSWERS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
WORDS = 80  # a longer text is cut, as in OFA's data

_LEADING = re.compile(r"^[,.!?*#:;~]+")


def cleaned(text: str) -> str:
    """Lower case, no leading punctuation, dashes and slashes as blanks, at most 80 words.

    >>> cleaned("...A well-known <person>  waves/smiles")
    'a well known person waves smiles'
    """
    plain = _LEADING.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(plain.split()[:WORDS])


def prompt(hypothesis: str, caption: str | None = None) -> str:
    """The question; with the image's caption in it where one is given."""
    if caption is None:
        return f'does the image describe " {cleaned(hypothesis)} "?'
    return f'can image and text1 " {cleaned(caption)} " imply text2 " {cleaned(hypothesis)} "?'


def answer(label: str) -> str:
    """'yes', 'maybe' or 'no' of SNLI's label, or of itself. Raises InputError with what is allowed."""
    word = label.strip().lower()
    found = ANSWERS.get(word, word)
    if found not in ANSWERS.values():
        raise InputError(f"the label {label!r} is not one of {', '.join(ANSWERS)} (or {', '.join(ANSWERS.values())})")
    return found
