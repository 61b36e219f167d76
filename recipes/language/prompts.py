"""Instructions of the kinds that Spec-Bench asks, built from texts that are not in it: what a drafter for a chat model is trained on.

`build(data, seed)` gives (kind, text) pairs in an order that mixes the kinds. Whatever shares a run of `SHARED` words with a prompt of
Spec-Bench is dropped, so that its prompts stay unseen.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from templates import CODE, GERMAN, MATHS, PASSAGE, REWRITE, TOPIC, TOPICS, TRANSLATE

SHARED = 8
PER_KIND = {"maths": 620, "question": 560, "summary": 380, "translation": 560, "retrieval": 330, "open": 720, "code": 170, "rewrite": 260}


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def runs(text: str, length: int = SHARED) -> set[tuple[str, ...]]:
    """Runs of `length` words, or the whole of a shorter text."""
    found = words(text)
    return {tuple(found[at : at + length]) for at in range(max(1, len(found) - length + 1))}


def seen_in_test(spec_bench: Path) -> set[tuple[str, ...]]:
    """The runs of words of every turn of the test's prompts."""
    rows = map(json.loads, spec_bench.read_text(encoding="utf-8").splitlines())
    return set().union(*(runs(turn) for row in rows for turn in row["turns"]))


def plain(passage: str) -> str:
    """WikiText's spaced tokens as prose."""
    text = re.sub(r" @([.,-])@ ", r"\1", passage.strip())
    text = re.sub(r" ([.,;:!?)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", text))
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    return re.sub(r"\s+", " ", text.replace(" 's", "'s").replace(" n't", "n't").replace(" '", "'"))


def passages(folder: Path) -> tuple[list[str], list[str]]:
    """(headings, passages of 40 to 420 words without unknown words)."""
    headings, texts = [], []
    for name in ("valid.txt", "test.txt"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            line = line.strip()
            if re.fullmatch(r"= [^=].*[^=] =", line) and "<unk>" not in line:
                headings.append(plain(line.strip("= ")))
            sentences = [part for part in re.split(r"(?<= \.) ", line) if "<unk>" not in part]
            text = plain(" ".join(sentences))
            if not line.startswith("=") and 40 <= len(text.split()) <= 420:
                texts.append(text)
    return headings, texts


def table(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def gsm8k(data: Path) -> list[str]:
    file = data / "llm-eval/gsm8k/grade_school_math/data/train.jsonl"
    return [json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()]


def code(data: Path) -> list[str]:
    with gzip.open(data / "llm-eval/human-eval/data/HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines]


def alpaca(data: Path) -> list[str]:
    lines = (data / "llm-eval/eagle/eagle/data/alpaca/question.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["turns"][0] for line in lines]


def pairs(data: Path) -> list[tuple[str, str]]:
    """(question, sentence that may answer it)."""
    glue = data / "glue/glue_data/QNLI"
    rows = [row for name in ("dev.tsv", "test.tsv") for row in table(glue / name)]
    return [(row["question"], row["sentence"]) for row in rows if row.get("sentence")]


def sentences(data: Path) -> list[str]:
    glue = data / "glue/glue_data"
    found = [row["sentence1"] for name in ("train.tsv", "test.tsv") for row in table(glue / "RTE" / name)]
    found += [row["sentence2"] for row in table(glue / "STS-B/train.tsv") if row.get("sentence2")]
    return [text for text in found if 6 <= len(text.split()) <= 60]


def german(rng: random.Random) -> Iterator[str]:
    """German sentences of parts that fit one another."""
    while True:
        first, (verb, rest), tail = (rng.choice(GERMAN[part]) for part in ("who", "does", "how"))
        yield rng.choice([f"{first} {verb} {tail} {rest}.", f"{tail[0].upper()}{tail[1:]} {verb} {first[0].lower()}{first[1:]} {rest}."])


def retrieval(rng: random.Random, texts: list[str], asked: list[tuple[str, str]]) -> Iterator[str]:
    """Passages, then a question: answered in the passages or not."""
    while True:
        question, sentence = rng.choice(asked)
        around = rng.sample(texts, rng.choice([1, 1, 2]))
        parts = [sentence, *around] if rng.random() < 0.7 else around
        rng.shuffle(parts)
        yield "\n".join([*parts, question])


def kinds(data: Path, rng: random.Random) -> dict[str, Iterable[str]]:
    """An endless or shuffled supply of each kind."""
    headings, texts = passages(data / "llm-eval/wikitext-2")
    asked, plain_sentences = pairs(data), sentences(data)
    subjects = TOPICS + headings
    maths, questions, programs = gsm8k(data), [question for question, _ in asked] + 2 * alpaca(data), code(data)
    for supply in (maths, questions, programs, plain_sentences):
        rng.shuffle(supply)

    def filled(templates: list[str], supply: list[str]) -> Iterator[str]:
        while True:
            for item in rng.sample(supply, len(supply)):
                yield rng.choice(templates).replace("{}", item)

    def translations() -> Iterator[str]:
        from_german, from_english = german(rng), filled(TRANSLATE, plain_sentences)
        while True:
            yield "Translate German to English: " + next(from_german)
            yield next(from_english)

    return {
        "maths": filled(MATHS, maths),
        "question": iter(questions),
        "summary": filled(PASSAGE, texts),
        "translation": translations(),
        "retrieval": retrieval(rng, [text for text in texts if len(text.split()) < 180], asked),
        "open": filled(TOPIC, subjects),
        "code": filled(CODE, programs),
        "rewrite": filled(REWRITE, plain_sentences),
    }


def build(data: Path, seed: int = 0, scale: float = 1.0) -> list[tuple[str, str]]:
    """(kind, instruction) pairs, mixed, without doubles and without what the test shares."""
    rng, test = random.Random(seed), seen_in_test(data / "llm-eval/spec-bench/question.jsonl")
    made: dict[str, str] = {}
    for kind, supply in kinds(data, rng).items():
        wanted, most = round(PER_KIND[kind] * scale), 20 * PER_KIND[kind] * max(1.0, scale)
        for tried, text in enumerate(supply):
            if text not in made and not runs(text) & test:
                made[text] = kind
                wanted -= 1
            if wanted <= 0 or tried > most:
                break
    found = [(kind, text) for text, kind in made.items()]
    rng.shuffle(found)
    return found
