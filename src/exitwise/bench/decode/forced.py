"""What early exits really save in a language model's decoding: full depth, forced exits and the ideal, timed in turn in one process.

The ideal is the same model cut at the same depths, with no rule and no stair. Where rows leave at unlike depths, every layer runs for the
rows that need it and for no other: cuts of the model at two depths that follow each other, on those rows, differ by what that costs. All
three run in our own loop, which is faster than `generate`; against that the shares would be flattered.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...engine import Engine
from ...method import Method
from ...run.walk import Plan
from ...stack import reach
from .. import speed

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the layers, for rows that leave at unlike depths


def exits(model: Any, depths: Sequence[int]) -> Engine:
    """An engine whose rows leave at these depths, in turn, asking after every layer as a real rule does."""
    rules = {"decoder": speed.Asked(depths)}
    return Engine(model, Method("forced", "forced exits that ask", lambda settings, layers: Plan(rules, False, "run late")))


@contextmanager
def cut(model: Any, depth: int) -> Iterator[None]:
    """The model with its first layers only, inside this block."""
    (stack,) = Engine(model, "never").family.stacks_of(model)
    path, _, name = stack.path.rpartition(".")
    owner: Any = reach(model, path) if path else model
    whole, layers = getattr(owner, name), model.config.num_hidden_layers
    setattr(owner, name, nn.ModuleList(list(whole)[:depth]))
    model.config.num_hidden_layers = depth
    try:
        yield
    finally:
        setattr(owner, name, whole)
        model.config.num_hidden_layers = layers


def mixed(layers: int) -> list[int]:
    """A quarter, a half, three quarters and all of the layers.

    >>> mixed(30)
    [8, 15, 22, 30]
    """
    return [max(1, round(share * layers)) for share in SHARES]


def realised(model: Any, rows: int, depths: Sequence[int], repeats: int, tokens: int, prompt: int = 16) -> dict[str, Any]:
    """Share of the possible saving that is realised: (T_full - T_exits) / (T_full - T_ideal), of medians. Depths are dealt to rows in
    turn."""
    given = inputs(model, rows, prompt)
    how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": []}
    never, forced = Engine(model, "never"), exits(model, depths)
    dealt = sorted(depths[row % len(depths)] for row in range(rows))

    def shallow(count: int, depth: int) -> None:
        with cut(model, depth):
            Engine(model, "never").generate(**{name: value[:count] for name, value in given.items()}, **how)

    steps = pieces(dealt)
    runs: dict[str, Callable[[], Any]] = {"full": lambda: never.generate(**given, **how), "exits": lambda: forced.generate(**given, **how)}
    for count, depth, _ in steps:
        runs[f"{count} rows to {depth}"] = partial(shallow, count, depth)
    seconds = speed.alternate(runs, repeats)

    def ideal(of: Callable[[str], float]) -> float:
        return sum(sign * of(f"{count} rows to {depth}") for count, depth, sign in steps)

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    turns = [
        _share(seconds["full"][i], seconds["exits"][i], ideal(lambda name, i=i: seconds[name][i]))  # type: ignore[misc]
        for i in range(repeats)
    ]
    return {
        "rows": rows, "depths": list(depths), "tokens": tokens,
        "realised": _share(medians["full"], medians["exits"], ideal(medians.__getitem__)),
        "realised_iqr": speed.quartiles(turns) if repeats > 1 else turns * 2, "speedup": medians["full"] / medians["exits"],
        "ideal_s": ideal(medians.__getitem__), "median_s": medians, "times_s": seconds,
    }  # fmt: skip


def pieces(depths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(rows, depth, sign) of the cuts whose times add up to the ideal, for rows that leave at these depths, rising.

    >>> pieces([2, 2, 5, 9])
    [(4, 2, 1), (2, 5, 1), (2, 2, -1), (1, 9, 1), (1, 5, -1)]
    """
    out: list[tuple[int, int, int]] = []
    last = 0
    for depth in sorted(set(depths)):
        staying = sum(each >= depth for each in depths)
        out.append((staying, depth, 1))
        if last:
            out.append((staying, last, -1))
        last = depth
    return out


def inputs(model: Any, rows: int, prompt: int) -> dict[str, Any]:
    """Random words, the same each time."""
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (rows, prompt), generator=dice)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _share(full: float, exits: float, ideal: float) -> float:
    return (full - exits) / (full - ideal)
