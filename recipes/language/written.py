"""Answers read back as training data: rows of one depth, a short list of the vocabulary, and the targets of the full model on that list."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

KEPT, HELD, EVERY = 32, 7, 20  # targets kept for each token; rows number HELD of every EVERY are held out


@dataclass
class Row:
    """One answer. states: (tokens, width) float16 after the depth, of prompt and answer without its last token; last: (answer, width)
    float16 normed states of the full model; prompt: tokens of the prompt, so that last[i] belongs to states[prompt - 1 + i].

    targets: after `aim`, numbers in the short list and their share, (answer, KEPT) each, and whether the model's own word is in the list.
    """

    kind: str
    ids: Tensor
    prompt: int
    states: Tensor
    last: Tensor
    numbers: Tensor | None = None
    shares: Tensor | None = None

    @property
    def answer(self) -> Tensor:
        return self.ids[self.prompt :]


def read(folder: Path, depth: int) -> tuple[list[Row], list[Row]]:
    """(rows to learn from, rows held out), in the order of the files."""
    learn: list[Row] = []
    held: list[Row] = []
    for file in sorted(folder.glob("*.safetensors")):
        kinds = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        with safe_open(file, "pt") as found:
            ids, states, last, lengths, prompts = (found.get_tensor(n) for n in ("ids", f"depth{depth}", "last", "lengths", "prompts"))
        parts = zip(
            kinds,
            ids.split(lengths.tolist()),
            prompts.tolist(),
            states.split((lengths - 1).tolist()),
            last.split((lengths - prompts).tolist()),
        )
        for number, row in enumerate(Row(*part) for part in parts):
            (held if number % EVERY == HELD else learn).append(row)
    return learn, held


def shortlist(rows: Sequence[Row], words: int, vocabulary: int) -> Tensor:
    """(words,) int64, ascending: the model's own words by frequency, those of prompts counting a quarter; the rest by number."""
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for row in rows:
        counts += torch.bincount(row.answer, minlength=vocabulary) + torch.bincount(row.ids[: row.prompt], minlength=vocabulary) / 4
    counts -= torch.arange(vocabulary) * 1e-9
    return counts.topk(words).indices.sort().values


@torch.no_grad()
def aim(rows: Sequence[Row], listed: Tensor, head: Tensor) -> None:
    """Fills in each row's targets: the full model's law on the short list, its KEPT likeliest words, renormalised."""
    short = head[listed]
    for at in range(0, len(rows), 16):
        part = rows[at : at + 16]
        top = (torch.cat([row.last for row in part]).float() @ short.T).topk(KEPT, dim=-1)
        shares, numbers = top.values.softmax(-1).half(), top.indices.short()
        sizes = [len(row.last) for row in part]
        for row, one, other in zip(part, numbers.split(sizes), shares.split(sizes)):
            row.numbers, row.shares = one.clone(), other.clone()


@dataclass
class Batch:
    """states (rows, tokens, width), padded at the end; at: (2, n) rows and tokens whose targets follow; numbers, shares (n, KEPT); own:
    (n,) the full model's word as a number in the short list, or -1 where it is not in it."""

    states: Tensor
    at: Tensor
    numbers: Tensor
    shares: Tensor
    own: Tensor


def batch(rows: Sequence[Row], listed: Tensor) -> Batch:
    longest = max(len(row.states) for row in rows)
    states = torch.zeros(len(rows), longest, rows[0].states.shape[1])
    for number, row in enumerate(rows):
        states[number, : len(row.states)] = row.states
    at = [(torch.full((len(row.last),), number), torch.arange(row.prompt - 1, len(row.ids) - 1)) for number, row in enumerate(rows)]
    words = torch.cat([row.answer for row in rows])
    place = torch.searchsorted(listed, words).clamp(max=len(listed) - 1)
    return Batch(
        states,
        torch.stack([torch.cat(part) for part in zip(*at)]),
        torch.cat([row.numbers for row in rows if row.numbers is not None]).long(),
        torch.cat([row.shares for row in rows if row.shares is not None]).float(),
        torch.where(listed[place] == words, place, -1),
    )


def order(rows: Sequence[Row], size: int, epoch: int, seed: int = 0) -> Iterator[list[Row]]:
    """Batches of one epoch: like lengths together, in an order that the seed and the epoch fix."""
    rng = random.Random(f"{seed} {epoch}")
    mixed = rng.sample(list(rows), len(rows))
    pools = [sorted(mixed[at : at + 12 * size], key=lambda row: len(row.states)) for at in range(0, len(mixed), 12 * size)]
    batches = [pool[at : at + size] for pool in pools for at in range(0, len(pool), size)]
    yield from rng.sample(batches, len(batches))
