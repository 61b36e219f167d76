"""A model's own answers (`kangaroo.py answers` wrote them) as prompts with answers, a row each, for `exitwise train MODEL --method ...`.

Run from the project's folder: python recipes/language/chats.py MODEL [--work .data/kangaroo]
MODEL is the folder of the model that wrote them; the rows go to WORK/chats.jsonl. Exits beside the frozen model, for `python -m
exitwise.bench --only decode-lossy`: exitwise train MODEL --method eellm --data WORK/chats.jsonl --out WORK/tuned-run, and its export/ to
--tuned.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ngrams import answers
from transformers import AutoTokenizer


def main(arguments: list[str] | None = None) -> Path:
    """Reads the answers, writes the rows. Reading them gives each answer its end again, so that it is left out here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the language model that wrote the answers")
    parser.add_argument("--work", type=Path, default=Path(".data/kangaroo"))
    given = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    rows = []
    for ids, first in answers(given.work / "answers"):
        said = ids[first:-1] if ids[-1] == tokenizer.eos_token_id else ids[first:]
        rows.append({"prompt": tokenizer.decode(ids[:first]), "answer": tokenizer.decode(said)})
    out: Path = given.work / "chats.jsonl"
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} answers: {out}", file=sys.stderr)
    return out


if __name__ == "__main__":
    main()
