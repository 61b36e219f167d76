"""Who proposes the next tokens from a shallow depth: the model's own head there, a trained adapter, or the text itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .adapter import Adapter
from .stair import Stair
from .store import Span, Store

Head = Callable[[Tensor], Tensor]  # states (rows, tokens, width) before the final norm -> logits (rows, tokens, vocabulary)


class Drafter(Protocol):
    """Proposes tokens from states at `depth`.

    see: these rows' tokens stand at `depth` and will go deeper (their states there are gone afterwards). propose: (rows, vocabulary) logits
    of what follows each row's newest token. crop, keep: as the stair does.
    """

    depth: int

    def see(self, stair: Stair, rows: Sequence[int]) -> None: ...

    def propose(self, stair: Stair, rows: Sequence[int]) -> Tensor: ...

    def crop(self, row: int, length: int) -> None: ...

    def keep(self, rows: Sequence[int]) -> None: ...


class Offers(Protocol):
    """Offers drafts that cost nothing: at most so many tokens that may follow a row's `ids`, which hold nothing but confirmed tokens."""

    def offer(self, row: int, ids: Sequence[int], most: int) -> list[int]: ...

    def keep(self, rows: Sequence[int]) -> None: ...


class Nobody:
    """No drafter: only what is offered is drafted, and verified from the first layer on."""

    depth = 0

    def see(self, stair: Stair, rows: Sequence[int]) -> None:
        return None

    def propose(self, stair: Stair, rows: Sequence[int]) -> Tensor:
        raise AssertionError("nobody is never asked")

    def crop(self, row: int, length: int) -> None:
        return None

    def keep(self, rows: Sequence[int]) -> None:
        return None


@dataclass
class SharedHead:
    """The first `depth` layers and the model's own head, or a cheaper one (LayerSkip, SoFT)."""

    depth: int
    head: Head

    def see(self, stair: Stair, rows: Sequence[int]) -> None:
        return None

    def propose(self, stair: Stair, rows: Sequence[int]) -> Tensor:
        return self.head(stair.newest(rows))[:, -1]

    def crop(self, row: int, length: int) -> None:
        return None

    def keep(self, rows: Sequence[int]) -> None:
        return None


class AdapterHead:
    """The first layers, a trained adapter with keys and values of its own, and the model's head (Kangaroo).

    It is one layer more: its `have` is its own frontier, and whatever states at `depth` it has not read yet wait here, copied, since the
    stair's go deeper.
    """

    def __init__(self, adapter: Adapter, depth: int, head: Head, rows: int) -> None:
        self.adapter, self.depth, self.head = adapter, depth, head
        self.store = Store(rows)
        self.have, self.seen = [0] * rows, [0] * rows
        self.waiting: list[list[Tensor]] = [[] for _ in range(rows)]

    def see(self, stair: Stair, rows: Sequence[int]) -> None:
        for row in rows:
            start, end = self.seen[row], stair.length(row)
            if start < end:
                self.waiting[row].extend(torch.split(stair.state(row, start, end).clone(), 1, 1))
                self.seen[row] = end

    def propose(self, stair: Stair, rows: Sequence[int]) -> Tensor:
        counts = [len(self.waiting[row]) for row in rows]
        longest = max(counts)
        states = torch.cat(
            [torch.cat([*self.waiting[row], *self.waiting[row][-1:] * (longest - len(self.waiting[row]))], 1) for row in rows]
        )
        every = len(rows) == self.store.rows and list(rows) == list(range(len(rows)))
        span = Span(None if every else tuple(rows), tuple(self.have[row] for row in rows), longest, states.device)
        after = self.adapter.step(states, span, self.store)
        for row, count in zip(rows, counts, strict=True):
            self.have[row] += count
            self.waiting[row] = []
        last = torch.tensor(counts, device=states.device) - 1
        return self.head(after[torch.arange(len(rows), device=states.device), last][:, None])[:, -1]

    def crop(self, row: int, length: int) -> None:
        self.have[row] = min(self.have[row], length)
        self.waiting[row] = self.waiting[row][: max(0, length - self.have[row])]
        self.seen[row] = min(self.seen[row], length)

    def keep(self, rows: Sequence[int]) -> None:
        self.store.keep(torch.tensor(list(rows)))
        self.have, self.seen = [self.have[row] for row in rows], [self.seen[row] for row in rows]
        self.waiting = [self.waiting[row] for row in rows]


def certainty(logits: Tensor) -> Tensor:
    """The greatest probability, (rows,)."""
    return torch.exp(logits.float().amax(-1) - torch.logsumexp(logits.float(), -1))
