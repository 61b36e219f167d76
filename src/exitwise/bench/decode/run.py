"""Several ways to continue the same prompts, in turn in one process: seconds, tokens, and how often they are those of `generate`.

What each prompt gave is kept on disk until the run is done, so that a run which was stopped goes on with the next prompt.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...kept import fingerprint
from .. import record
from ..cells import Cells, key_of
from ..speed import quartiles
from .ways import FULL, PLAIN, Absent, Inputs, Text, Way

Tick = Callable[[str], None]
WARM = 4  # tokens of a way's first, unmeasured turn
NEAR = 1e-3  # logits that lie closer may change places when float32 sums are taken in another order


@dataclass(frozen=True)
class Asked:
    """One prompt. where: its name in the file; group: its category."""

    where: str
    inputs: Inputs
    group: str = ""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.inputs["input_ids"].shape[1])


@dataclass(frozen=True)
class Setup:
    """How a run is done. tokens: most new ones; name: of the record; about: what else its reader should know (the model, the file)."""

    tokens: int
    out: Path
    name: str
    about: Mapping[str, Any]
    tick: Tick = lambda _: None


def run(model: Any, prompts: Sequence[Asked], ways: Sequence[Way], absent: Sequence[Absent], setup: Setup) -> dict[str, Any]:
    """The record: a row for each way, a line for each prompt. The first way is the model's own `generate`, which the others are held to."""
    assert ways[0].key == PLAIN
    config = {**setup.about, "prompts": len(prompts), "tokens": setup.tokens, "ways": {way.key: dict(way.settings) for way in ways}}
    asked = [(one.where, one.inputs["input_ids"].tolist()) for one in prompts]
    key = key_of({**config, "model": fingerprint(model), "asked": asked, "commit": record.commit(), "threads": torch.get_num_threads()})
    cells, warm = Cells(setup.out, setup.name, key), Warm(prompts[0].inputs)
    with record.run(setup.out, setup.name, config, 0) as made:
        lines = []
        for place, one in enumerate(prompts):
            setup.tick(f"{setup.name}: prompt {place + 1} of {len(prompts)}")
            lines.append(cells.once(f"{place:05d}", partial(answered, model, one, turned(ways, place), setup.tokens, warm)))
        made["task"] = {"kind": "continue", "items": len(prompts), "folder": str(setup.about.get("data", "")), "tokens": setup.tokens}
        made["decode"] = [_row(way, lines) for way in ways]
        made["absent"] = [{"key": each.key, "reason": each.reason} for each in absent]
        made["prompts"] = [_without_texts(line) for line in lines]
    cells.done()
    return made


def turned(ways: Sequence[Any], place: int) -> list[Any]:
    """The ways in the order of this turn: each is the first as often as any other.

    >>> turned("abc", 4)
    ['b', 'c', 'a']
    """
    shift = place % len(ways)
    return [*ways[shift:], *ways[:shift]]


class Warm:
    """Each way writes a few tokens once, before it is first measured in this process."""

    def __init__(self, given: Inputs) -> None:
        self.given, self.done = given, set[str]()

    def __call__(self, key: str, write: Callable[[Inputs, int], Text]) -> None:
        if key not in self.done:
            self.done.add(key)
            write(self.given, WARM)


def answered(model: Any, one: Asked, ways: Sequence[Way], tokens: int, warm: Warm) -> dict[str, Any]:
    """What every way says of one prompt, and how long it took."""
    told: dict[str, dict[str, Any]] = {}
    for way in ways:
        with way.opened() as write:
            warm(way.key, write)
            start = time.perf_counter()
            text = write(one.inputs, tokens)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            told[way.key] = {"seconds": time.perf_counter() - start, **text.to_dict()}
    want = told[PLAIN]["tokens"]
    for key, each in told.items():
        each["equal"] = each["tokens"] == want
        each |= {"agrees": 1.0, "near": False} if each["equal"] or key == PLAIN else _judged(model, one, each["tokens"], want)
    return {"where": one.where, "group": one.group, "length": one.length, "ways": told}


@torch.no_grad()
def _judged(model: Any, one: Asked, tokens: list[int], want: list[int]) -> dict[str, Any]:
    """agrees: the share of these tokens that the whole model, given the text before them, finds likeliest. near: whether the first token
    that is not the wanted one was as likely to it, but for float32's order of sums; it takes one pass over the whole text."""
    ids = torch.cat([one.inputs["input_ids"], torch.tensor([tokens])], 1)
    logits = model(input_ids=ids).logits[0, one.length - 1 : -1].float()
    first = next((i for i, (a, b) in enumerate(zip(tokens, want, strict=False)) if a != b), None)
    gap = float("inf") if first is None else float((logits[first, want[first]] - logits[first, tokens[first]]).abs())
    return {"agrees": float((logits.argmax(-1) == torch.tensor(tokens)).double().mean()), "near": gap < NEAR, "first_unlike": first}


def _row(way: Way, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One way over all prompts. Ratios are of tokens a second on the same prompt."""
    mine, plain, full = ([line["ways"].get(key) for line in lines] for key in (way.key, PLAIN, FULL))
    speed = [_speed(each) for each in mine]
    tokens = sum(len(each["tokens"]) for each in mine)
    rounds, drafted, accepted = (sum(each[name] or 0 for each in mine) for name in ("rounds", "drafted", "accepted"))
    calls, depths = [each["calls"] for each in mine], [(each["depth"], len(each["tokens"])) for each in mine if each["depth"] is not None]
    return {
        "key": way.key, "label": way.label, "lossless": way.lossless, "settings": dict(way.settings),
        "tokens": tokens, "seconds": sum(each["seconds"] for each in mine), "tokens_per_second": spread(speed),
        "over_generate": spread([ours / _speed(each) for ours, each in zip(speed, plain, strict=True)]),
        "over_full": spread([ours / _speed(each) for ours, each in zip(speed, full, strict=True)]) if all(full) else None,
        "equal": sum(each["equal"] for each in mine), "unequal": sum(not each["equal"] for each in mine),
        "near": sum(each["near"] for each in mine),
        "agreement": sum(each["agrees"] * len(each["tokens"]) for each in mine) / max(1, tokens),
        "depth": sum(d * n for d, n in depths) / sum(n for _, n in depths) if depths else None,
        "calls_per_token": None if None in calls else sum(calls) / max(1, tokens),
        "acceptance": accepted / drafted if drafted else None,
        "tokens_per_round": tokens / rounds if rounds else None,
        "rounds": rounds, "drafted": drafted, "accepted": accepted,
    }  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    lower, upper = quartiles(values) if len(values) > 1 else (values[0], values[0])
    return {"median": statistics.median(values), "q1": lower, "q3": upper}


def _speed(told: Mapping[str, Any]) -> float:
    return len(told["tokens"]) / told["seconds"]


def _without_texts(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line for the record: token counts in the place of tokens, which are the prompts' answers and may not be ours to publish."""
    ways = {key: {**each, "tokens": len(each["tokens"])} for key, each in line["ways"].items()}
    return {**line, "ways": ways}
