"""Drafts that cost no layer: what followed the same few tokens before, in this text or in texts that the model wrote earlier."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError

OWN = (5, 4, 3, 2, 1)  # tokens of context, the longest first


class Table(nn.Module):
    """The likeliest next token after one, two and three tokens, as it was in other texts; `learn` fills it, safetensors keep it.

    sizes: entries of each order. grams1..3: (entries, order + 1) token ids, the context and what follows it.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        for order, size in enumerate(sizes, start=1):
            self.register_buffer(f"grams{order}", torch.zeros(size, order + 1, dtype=torch.int32))
        self.orders = len(sizes)
        self._next: dict[tuple[int, ...], int] | None = None

    @staticmethod
    def learn(texts: Iterable[tuple[Sequence[int], int]], orders: int = 3, least: int = 1) -> Table:
        """From (token ids, where the model's own words begin) of each text. least: times that a context must have been seen.

        Raises InputError where there is nothing to learn from.
        """
        seen: list[defaultdict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(orders)]
        for ids, first in texts:
            for place in range(max(1, first), len(ids)):
                for order in range(1, min(orders, place) + 1):
                    seen[order - 1][tuple(ids[place - order : place])][ids[place]] += 1
        kept = [[(*c, n.most_common(1)[0][0]) for c, n in sorted(each.items()) if n.total() >= least] for each in seen]
        if not kept[0]:
            raise InputError("There is no text to learn from. Give token ids of texts that the model wrote.")
        table = Table([len(rows) for rows in kept])
        for order, rows in enumerate(kept, start=1):
            if rows:
                table.get_buffer(f"grams{order}").copy_(torch.tensor(rows, dtype=torch.int32))
        return table

    def after(self, context: tuple[int, ...]) -> int | None:
        """What followed this context, if it was seen."""
        if self._next is None:
            rows = [row for order in range(1, self.orders + 1) for row in self.get_buffer(f"grams{order}").tolist()]
            self._next = {tuple(row[:-1]): row[-1] for row in rows}
        return self._next.get(context)


class Grams:
    """Offers by the text of each row itself, the latest place of the longest context; and by a table for contexts that are new in it.

    least: tokens of context at least. drafts: tokens that are offered at most unless the text repeats itself, which is to say that its
    last five tokens stood in it before; None: as many as are asked for. Adaptive n-grams after Ou et al. 2024 (arXiv:2404.08698), with
    prompt lookup (Saxena 2023) as the case without a table.
    """

    def __init__(self, rows: int, table: Table | None = None, least: int = 1, drafts: int | None = None) -> None:
        self.table, self.orders, self.drafts = table, tuple(order for order in OWN if order >= least), drafts
        self.seen: list[dict[tuple[int, ...], int]] = [{} for _ in range(rows)]
        self.read = [1] * rows

    def offer(self, row: int, ids: Sequence[int], most: int) -> list[int]:
        """At most so many tokens that may follow; `ids` are all of the row's, and are never taken back."""
        seen = self.seen[row]
        for place in range(self.read[row], len(ids)):
            for order in self.orders:
                if order <= place:
                    seen[tuple(ids[place - order : place])] = ids[place]
        self.read[row] = max(self.read[row], len(ids))
        tail, out = list(ids[-OWN[0] :]), list[int]()
        repeats = len(tail) == OWN[0] and tuple(tail) in seen
        most = most if repeats or self.drafts is None else min(most, self.drafts)
        while len(out) < most:
            found = self._after(seen, tail)
            if found is None:
                break
            out.append(found)
            tail = [*tail, found][-OWN[0] :]
        return out

    def _after(self, seen: dict[tuple[int, ...], int], tail: list[int]) -> int | None:
        for order in self.orders:
            context = tuple(tail[len(tail) - order :])
            if len(context) < order:
                continue
            found = seen.get(context)
            if found is None and self.table is not None and order <= self.table.orders:
                found = self.table.after(context)
            if found is not None:
                return found
        return None

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order."""
        self.seen, self.read = [self.seen[row] for row in rows], [self.read[row] for row in rows]


def one_hot(token: int, words: int, device: torch.device) -> Tensor:
    """(words,) the law of an offer: it was not drawn, so it is what it is for certain."""
    law = torch.zeros(words, device=device)
    law[token] = 1.0
    return law
