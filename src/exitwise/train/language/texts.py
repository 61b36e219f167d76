"""Texts and chats of a file as training data: tokens, which of them are learnt, and batches that a resumed run sees again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exitwise.errors import InputError
from exitwise.train.exits import Labelled

from .losses import next_tokens

FORMS = 'Allowed: a *.txt of running text; a *.jsonl whose rows have "text", "prompt" and "answer", or "messages" with roles and contents.'


@dataclass(frozen=True)
class Sample:
    """ids (tokens,) of one row; asked (tokens,): true for those that are to be said."""

    ids: Tensor
    asked: Tensor


def read(file: Path, tokenizer: Any, tokens: int) -> list[Sample]:
    """The samples of a file, at most `tokens` long each. Raises InputError that names the row.

    Running text is cut into windows, each token of which is learnt. Of chats, in the tokenizer's own format, and of prompts with answers
    only what the model is to say is learnt; what is longer than `tokens` is cut at its end.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a file. {FORMS}")
    if file.suffix == ".txt":
        return list(_windows(_ids(tokenizer, file.read_text(encoding="utf-8")), tokens))
    if file.suffix != ".jsonl":
        raise InputError(f"{file} is not of a known form. {FORMS}")
    found: list[Sample] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            found += [
                sample
                for sample in _row(_parsed(line, file, number), tokenizer, tokens, f"{file}:{number}")
                if bool(sample.asked[1:].any())
            ]
    if not found:
        raise InputError(f"{file} holds nothing to learn within {tokens} tokens. {FORMS}")
    return found


def _parsed(line: str, file: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{number} is not JSON ({error}). {FORMS}") from None
    if not isinstance(row, dict):
        raise InputError(f"{file}:{number} is a {type(row).__name__}, not an object. {FORMS}")
    return row


def _row(row: Mapping[str, Any], tokenizer: Any, tokens: int, where: str) -> Iterator[Sample]:
    if isinstance(row.get("text"), str):
        yield from _windows(_ids(tokenizer, row["text"]), tokens)
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
        yield _cut(_spoken(tokenizer, [(False, row["prompt"]), (True, row["answer"])], ends=True), tokens)
    elif isinstance(row.get("messages"), list):
        yield _cut(_chat(tokenizer, row["messages"], where), tokens)
    else:
        raise InputError(f"{where} has {sorted(row)}. {FORMS}")


def _chat(tokenizer: Any, messages: Sequence[Any], where: str) -> Sample:
    """What the assistant says, its end included, is what the longer conversation adds to the one that asks for it."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{where} is a chat, but the tokenizer has no chat template. Give prompts with answers, or set a template.")
    if not all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages):
        raise InputError(f'{where}: each of the "messages" needs a "role" and a "content".')
    parts, said = [], ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = tokenizer.apply_chat_template(messages[:number], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages[: number + 1], tokenize=False)
        if not (asked.startswith(said) and whole.startswith(asked)):
            raise InputError(
                f"{where}: the chat template rewrites earlier turns, so that answers cannot be told apart. Give prompts with answers."
            )
        parts += [(False, asked[len(said) :]), (True, whole[len(asked) :])]
        said = whole
    if not parts:
        raise InputError(f'{where} has no message of the role "assistant": there is nothing to learn.')
    return _spoken(tokenizer, parts, ends=False)


def _spoken(tokenizer: Any, parts: Sequence[tuple[bool, str]], ends: bool) -> Sample:
    ids: list[int] = []
    asked: list[bool] = []
    for learnt, text in parts:
        new = _ids(tokenizer, text, first=not ids)
        ids, asked = ids + new, asked + [learnt] * len(new)
    if ends and tokenizer.eos_token_id is not None:
        ids, asked = [*ids, tokenizer.eos_token_id], [*asked, True]
    return Sample(torch.tensor(ids), torch.tensor(asked))


def _ids(tokenizer: Any, text: str, first: bool = False) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=first and not getattr(tokenizer, "chat_template", None))["input_ids"]
    return found


def _cut(sample: Sample, tokens: int) -> Sample:
    return Sample(sample.ids[:tokens], sample.asked[:tokens])


def _windows(ids: Sequence[int], tokens: int) -> Iterator[Sample]:
    for part in torch.split(torch.tensor(list(ids), dtype=torch.long), tokens):
        if len(part) > 1:
            yield Sample(part, torch.ones(len(part), dtype=torch.bool))


def digest(samples: Sequence[Sample]) -> str:
    """Twelve letters that tell these samples from others."""
    seen = sha256()
    for sample in samples:
        seen.update(sample.ids.numpy().tobytes() + sample.asked.numpy().tobytes())
    return seen.hexdigest()[:12]


@dataclass(frozen=True)
class Lessons:
    """number -> batch of `rows` samples, the same for the same number: epoch after epoch, each in an order that the seed fixes."""

    samples: Sequence[Sample]
    rows: int
    seed: int = 0
    accumulate: int = 1
    share: tuple[int, int] = (0, 1)  # of which process of how many

    def __call__(self, number: int) -> Labelled:
        """step of the batch: the update that it belongs to."""
        process, processes = self.share
        at = (number * processes + process) * self.rows
        picked = [self._sample(at + offset) for offset in range(self.rows)]
        return padded(picked, number // self.accumulate)

    def _sample(self, number: int) -> Sample:
        epoch, at = divmod(number, len(self.samples))
        return self.samples[_order(len(self.samples), self.seed, epoch)[at]]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed} {epoch}").sample(range(count), count)


def padded(samples: Sequence[Sample], step: int = 0) -> Labelled:
    """One batch, padded at the end; pads are never asked and never seen. The model's own logits are asked for the last token only."""
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    asked, real = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)], asked[row, : len(sample.ids)], real[row, : len(sample.ids)] = sample.ids, sample.asked, 1
    return Labelled({"input_ids": ids, "attention_mask": real, "use_cache": False, "logits_to_keep": 1}, next_tokens(ids, asked), step)
