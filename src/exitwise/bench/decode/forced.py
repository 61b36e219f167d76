"""What early exits really save in a language model's decoding: full depth, forced exits and the ideal, timed in turn in one process.

The ideal is the same model cut at the same depths, with no rule and no stair (`static`): every layer runs for the rows that need it and for
no other. All run the same arithmetic of layers, which is faster than `generate`'s; against that the shares would be flattered.

What there is to save hangs on the depths. A layer of a small model reads its weights once for all rows, and that is what it costs on a CPU:
with 4 rows about four fifths of what it costs with 16 (SmolLM2-135M, float32, one thread). Where one row of four stays to the last layer,
every layer is called at every step, and even the ideal saves less than a tenth of the time: a share of that is mostly noise. A batch saves
what no row needs. So rows are forced to leave in two ways: `mixed` over all layers, and over the lower half of them, with `possible`, what
the ideal saves, beside each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import families
from ...engine import Engine
from ...lm.backbone import Backbone
from ...lm.store import Span, Store
from ...method import Method
from ...run.walk import Plan
from .. import speed

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the layers at which the last leaves, for rows that leave at unlike depths


def exits(model: Any, depths: Sequence[int]) -> Engine:
    """An engine whose rows leave at these depths, in turn, asking after every layer as a real rule does."""
    rules = {"decoder": speed.Asked(depths)}
    return Engine(model, Method("forced", "forced exits that ask", lambda settings, layers: Plan(rules, False, "run late")))


def mixed(layers: int) -> list[int]:
    """A quarter, a half, three quarters and all of so many layers.

    >>> mixed(30)
    [8, 15, 22, 30]
    """
    return [max(1, round(share * layers)) for share in SHARES]


@torch.no_grad()
def static(model: Any, ids: Tensor, depths: Sequence[int], tokens: int, whole_prompt: bool = True) -> list[list[int]]:
    """The ideal: new tokens of each row (rows, prompt) by the model's layers alone, every layer run for the rows that need it.

    depths: of each row, for every new token but the first. whole_prompt: the prompt, and with it the first new token, runs all layers, as
    in our loop; else those of its row only. No rule, no stair, nobody lags: rows that stay are the first ones of those that came.
    """
    backbone = Backbone(model, families.of(model)[1])
    order = sorted(range(len(depths)), key=lambda row: -depths[row])
    staying = [sum(depth > layer for depth in depths) for layer in range(max(depths))]
    at_first = [len(depths)] * backbone.depth if whole_prompt else staying
    stores = [Store(count, ids.shape[1] + tokens) for count in at_first]
    ids, written = ids[order], list[list[int]]()
    newest = _crossed(backbone, ids, 0, at_first, stores)
    for store, count in zip(stores, staying):
        store.keep(torch.arange(count))
    while True:
        picks: list[int] = backbone.readout(newest)[:, -1].argmax(-1).tolist()
        written.append(picks)
        if len(written) == tokens:
            break
        newest = _crossed(backbone, torch.tensor(picks)[:, None], ids.shape[1] + len(written) - 1, staying, stores)
    return [[picks[order.index(row)] for picks in written] for row in range(len(depths))]


def _crossed(backbone: Backbone, ids: Tensor, start: int, counts: Sequence[int], stores: Sequence[Store]) -> Tensor:
    """(rows, 1, width) state of the last token of each row after its own layers. counts: rows that each layer runs, falling."""
    rows, tokens = ids.shape
    spans = {count: Span(None, (start,) * count, tokens) for count in set(counts)}
    states = backbone.embed(ids, spans[counts[0]].positions.expand(rows, -1))
    aids, left = backbone.aids(states, spans[counts[0]]), list[Tensor]()
    masks: dict[tuple[int, int | None], Tensor | None] = {}
    for layer, count in enumerate(counts):
        if count < len(states):
            left.insert(0, states[count:, -1:])
            states = states[:count]
        key = count, backbone.window(layer)
        if key not in masks:
            masks[key] = spans[count].mask(states.dtype, key[1])
        states = backbone.run(layer, states, spans[count], stores[layer], aids(layer), masks[key])
    return torch.cat([states[:, -1:], *left])


def realised(model: Any, rows: int, depths: Sequence[int], repeats: int, tokens: int, prompt: int = 16) -> dict[str, Any]:
    """Share of the possible saving that is realised: (T_full - T_exits) / (T_full - T_ideal), of medians; `possible` is that saving as a
    share of T_full, without which the figure means little. Depths are dealt to rows in turn.

    `realised` is against the ideal in which every token has the depth that it has in our loop: the prompt runs all layers in both.
    `realised_cut` is against the model cut for the prompt too, which no exits of new tokens can reach.
    """
    given = inputs(model, rows, prompt)
    how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": []}
    never, forced = Engine(model, "never"), exits(model, depths)
    dealt = [depths[row % len(depths)] for row in range(rows)]
    runs: dict[str, Callable[[], Any]] = {
        "full": lambda: never.generate(**given, **how),
        "exits": lambda: forced.generate(**given, **how),
        "ideal": lambda: static(model, given["input_ids"], dealt, tokens),
        "cut": lambda: static(model, given["input_ids"], dealt, tokens, whole_prompt=False),
    }
    seconds = speed.alternate(runs, repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    made: dict[str, Any] = {
        "rows": rows, "depths": list(depths), "tokens": tokens, "speedup": medians["full"] / medians["exits"],
        "possible": 1 - medians["ideal"] / medians["full"], "median_s": medians, "times_s": seconds,
    }  # fmt: skip
    for name, least in (("realised", "ideal"), ("realised_cut", "cut")):
        turns = [_share(*turn) for turn in zip(seconds["full"], seconds["exits"], seconds[least], strict=True)]
        made[name] = _share(medians["full"], medians["exits"], medians[least])
        made[f"{name}_iqr"] = speed.quartiles(turns) if repeats > 1 else turns * 2
    return made


def inputs(model: Any, rows: int, prompt: int) -> dict[str, Any]:
    """Random words, the same each time."""
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (rows, prompt), generator=dice)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _share(full: float, exits: float, ideal: float) -> float:
    return (full - exits) / (full - ideal)
