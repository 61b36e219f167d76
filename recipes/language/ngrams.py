"""A table of n-grams from a model's own answers (`kangaroo.py answers` wrote them), saved as an engine that drafts by them.

Run from the project's folder: python recipes/language/ngrams.py MODEL [--work .data/kangaroo]
MODEL is a folder that `from_pretrained` reads; the engine goes to WORK/ngram, for `Engine.load` and `python -m exitwise.bench --only
decode`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from exitwise import Engine
from exitwise.methods.ngram import taught
from exitwise.pretrained import language_model


def answers(folder: Path) -> Iterator[tuple[list[int], int]]:
    """(token ids of a prompt and its answer, where the answer begins) of every row that was written."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            ids, lengths, prompts = (opened.get_tensor(name).tolist() for name in ("ids", "lengths", "prompts"))
        place = 0
        for length, prompt in zip(lengths, prompts, strict=True):
            yield ids[place : place + length], prompt
            place += length


def main(arguments: list[str] | None = None) -> Path:
    """Reads the answers, writes the engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the language model that wrote the answers")
    parser.add_argument("--work", type=Path, default=Path(".data/kangaroo"))
    given = parser.parse_args(arguments)
    texts = list(answers(given.work / "answers"))
    engine = Engine(language_model(given.model).model, "ngram")
    engine = Engine(engine.model, "ngram", exits=taught(engine.shape(), texts))
    kept: Path = engine.save(given.work / "ngram")
    print(f"{len(texts)} answers, {sum(len(ids) - first for ids, first in texts)} tokens: {kept}", file=sys.stderr)
    return kept


if __name__ == "__main__":
    main()
