"""Who proposes the next tokens from a shallow depth: the model's own head there, a trained adapter, or the text itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .stair import Stair

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


def looked_up(ids: Sequence[int], most: int, gram: int = 3, least: int = 2) -> list[int]:
    """What followed the last time that the newest tokens stood in this text: a draft that costs nothing (prompt lookup, Saxena 2023).

    The longest match of `gram` down to `least` tokens counts, the latest one of it; empty where there is none.

    >>> looked_up([1, 2, 3, 9, 1, 2], 3)
    [3, 9, 1]
    """
    size = len(ids)
    for length in range(min(gram, size - 1), least - 1, -1):
        tail = list(ids[size - length :])
        for start in range(size - length - 1, -1, -1):
            if list(ids[start : start + length]) == tail:
                return list(ids[start + length : start + length + most])
    return []


def certainty(logits: Tensor) -> Tensor:
    """The greatest probability, (rows,)."""
    return torch.exp(logits.float().amax(-1) - torch.logsumexp(logits.float(), -1))
