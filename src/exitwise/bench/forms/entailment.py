"""Visual entailment as OFA asks it: the sentence's spelling, both prompts, and the three answers.

The forms that hold it (OFA's TSV, SNLI-VE's jsonl) hand their fields over here, so that one model sees one wording.
"""

from __future__ import annotations

import re

from exitwise.errors import InputError

from ..items import SKIP, Item, Reading
from ..pictures import Source

ANSWERS = {"contradiction": "no", "entailment": "yes", "neutral": "maybe"}
CANDIDATES = tuple(ANSWERS.values())
LONGEST = 80  # words of a hypothesis or a caption


def spelled(text: str) -> str:
    """Lower case, no leading punctuation, '-' and '/' as blanks, single blanks, at most 80 words.

    >>> spelled("#A  well-known <person> sits.")
    'a well known person sits.'
    """
    plain = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(re.split(r"\s+", plain.strip())[:LONGEST])


def entailment(name: str, where: str, image: Source, hypothesis: str, premise: str, label: str, reading: Reading) -> Item:
    """The item: is the hypothesis true of the image (and, with `reading.add_caption`, of the premise)? Raises InputError."""
    sentence, caption = spelled(hypothesis), spelled(premise)
    if not sentence:
        raise InputError(f"{where}: the hypothesis for {name} is empty. {SKIP}")
    if reading.add_caption and not caption:
        raise InputError(f"{where}: the caption for {name} is empty, which --add-caption asks for. {SKIP}")
    word = label.strip().lower()
    answer = ANSWERS.get(word, word)
    if answer not in CANDIDATES:
        allowed = f"{', '.join(ANSWERS)} (or {', '.join(CANDIDATES)})"
        raise InputError(f"{where}: the label {label!r} for {name} is not among {allowed}. {SKIP}")
    asked = (
        f'can image and text1 " {caption} " imply text2 " {sentence} "?'
        if reading.add_caption
        else f'does the image describe " {sentence} "?'
    )
    return Item(name, where, image, asked, (answer,), CANDIDATES, "entailment")
