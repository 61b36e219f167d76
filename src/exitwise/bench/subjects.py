"""What methods are compared on: a model with a user's rows, asked through any engine: a unified model of pictures, a classifier of texts.

A subject has two splits, 'calibration' to choose on and 'judged' to judge on, and says of each run what every item got and paid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ..cost import count_macs
from ..engine import Engine
from ..errors import InputError
from ..trace import Trace
from .ask import Asked, Asker, scores
from .at_cost import AtCost
from .choosing import Tick
from .tasks import Task
from .texts import Encoded, Example
from .ways import histogram

SPLITS = ("calibration", "judged")
ROWS = 32  # of a batch


@dataclass(frozen=True)
class Outcome:
    """A run over a split. texts, marks (0..100 or CIDEr): of each item. paid, whole: layers that an item ran, and those of full depth (its
    steps of the decoder counted). macs: of all items, everything that ran. depth: stream -> mean. exits: stream -> share at each depth."""

    texts: list[str]
    marks: list[float]
    paid: list[float]
    whole: list[float]
    macs: float
    depth: dict[str, float]
    exits: dict[str, list[float]]
    trace: Trace

    @staticmethod
    def of(texts: Sequence[str], marks: Sequence[float], trace: Trace, macs: float) -> Outcome:
        """From what was said and what ran."""
        paid, whole = layers_of(trace, len(texts))
        exits = {s: [round(share, 4) for share in shares] for s, shares in histogram(trace).items()}
        return Outcome(list(texts), list(marks), paid, whole, macs, {s: trace.mean_depth(s) for s in trace.depth}, exits, trace)

    @property
    def cost(self) -> float:
        """One minus ETR."""
        return sum(self.paid) / sum(self.whole)


def layers_of(trace: Trace, rows: int) -> tuple[list[float], list[float]]:
    """(layers that each row ran, those of full depth): the sums of which give `cost.etr`, with the mean of an encoder's streams.

    A row with a decoder pays for the encoder once for each step that it computes, as the paper has it; beams are steps of their row.
    """
    encoder = [s for s, d in trace.depth.items() if d.dim() == 1]
    decoder = [s for s, d in trace.depth.items() if d.dim() == 2]
    steps = torch.ones(rows, dtype=torch.double)
    ran, most = torch.zeros(rows, dtype=torch.double), torch.zeros(rows, dtype=torch.double)
    for stream in decoder:
        depth = trace.depth[stream].view(rows, -1)
        steps = (depth > 0).sum(1).double()
        ran, most = ran + depth.sum(1), most + steps * trace.layers[stream]
    if encoder:
        merged = torch.stack([trace.depth[s].double() for s in encoder]).mean(0)
        ran, most = ran + steps * merged, most + steps * sum(trace.layers[s] for s in encoder) / len(encoder)
    return ran.tolist(), most.tolist()


class Subject(Protocol):
    """What the comparison asks. name: of the data. kind, metric: of the task. model: that carries the exits. stem: MACs of an item before
    any layer of a stack, which every run has paid once beforehand."""

    name: str
    kind: str
    metric: str
    model: Any
    stem: float

    def size(self, split: str) -> int: ...

    def knobs(self, names: Sequence[str]) -> dict[str, Any]:
        """Knobs that this kind of task wants, of those that a method has."""
        ...

    def outcome(self, engine: Engine, split: str, first: int | None = None) -> Outcome: ...

    def saving(self, engine: Engine, costs: Sequence[float], parts: Path, tick: Tick) -> list[dict[str, float]]:
        """Thresholds of a method with several, for each of these costs (shares of full depth's layers): the best on calibration items."""
        ...

    def card(self, place: int) -> dict[str, str]:
        """What was asked of a judged item, and what is right."""
        ...

    def clock(self, engines: Mapping[str, Engine], items: int, tick: Tick) -> dict[str, list[float]]:
        """Seconds per item at batch 1, in turn, one warm-up each; '' is the untouched model."""
        ...

    def key(self) -> list[Any]:
        """All that the answers depend on besides the model."""
        ...


class Pictures:
    """A unified model and two tasks of one kind: `held` to choose on, `judged` to judge on."""

    def __init__(self, asker: Asker, held: Task, judged: Task, name: str, tick: Tick = lambda _: None) -> None:
        self.asker, self.model, self.name, self.metric = asker, asker.model, name, judged.metric
        self.kind: str = judged.kind
        self._tasks = dict(zip(SPLITS, (held, judged), strict=True))
        self._items = {s: asker.prepare(t.items, lambda: tick("images")) for s, t in self._tasks.items()}
        self.stem = self._stem()

    def _stem(self) -> float:
        one = self._items["judged"][0]
        with torch.no_grad(), count_macs() as counted:
            self.model.model.stem(one.pixels)
        return float(counted.total)

    def size(self, split: str) -> int:
        return len(self._items[split])

    def knobs(self, names: Sequence[str]) -> dict[str, Any]:
        wanted = {"decoder_scope": "last", "decay": "none"} if self.kind == "answer" else {}  # one step: nothing falls with the steps
        return {name: value for name, value in wanted.items() if name in names}

    def outcome(self, engine: Engine, split: str, first: int | None = None) -> Outcome:
        items = self._items[split][:first]
        with count_macs() as counted:
            said = self.asker.ask(engine, items, ROWS)
        return Outcome.of(said.texts, scores(self.kind, said.texts, [a.item for a in items]), said.trace, counted.total)

    def saving(self, engine: Engine, costs: Sequence[float], parts: Path, tick: Tick) -> list[dict[str, float]]:
        chooser = AtCost(self.asker, self.kind, engine, self._items["calibration"], trials=4, tick=tick, parts=parts)
        return [chooser.at(1 - cost).settings for cost in costs]

    def card(self, place: int) -> dict[str, str]:
        item = self._items["judged"][place].item
        return {"item": item.name, "asked": item.prompt, "right": item.references[0]}

    def clock(self, engines: Mapping[str, Engine], items: int, tick: Tick) -> dict[str, list[float]]:
        def asked(engine: Engine | None, one: Asked) -> None:
            if engine is None:
                self.asker.plain(one)
            else:
                self.asker.ask(engine, [one], pixels=True)

        every = self._items["judged"]
        return in_turn({"": None, **engines}, every[:: max(1, len(every) // items)][:items], asked, tick)

    def key(self) -> list[Any]:
        asked = [[(a.item.name, a.item.prompt, a.item.references, a.item.candidates) for a in items] for items in self._items.values()]
        return [self.kind, self.asker.beams, *asked]


class Texts:
    """A classifier, its tokenizer and two sets of rows with labels: `held` to choose on, `judged` to judge on."""

    kind, metric, stem = "classify", "accuracy", 0.0

    def __init__(
        self, model: Any, tokenizer: Any, held: Sequence[Example], judged: Sequence[Example], name: str, longest: int = 128
    ) -> None:
        if int(getattr(model.config, "num_labels", 0)) < 2:
            raise InputError(f"{type(model).__name__} has one output and no classes. The comparison judges classes: give a classifier.")
        self.model, self.name = model, name
        self._rows = dict(zip(SPLITS, (list(held), list(judged)), strict=True))
        self._sets = {s: Encoded(rows, tokenizer, longest) for s, rows in self._rows.items()}

    def size(self, split: str) -> int:
        return len(self._sets[split])

    def knobs(self, names: Sequence[str]) -> dict[str, Any]:
        return {}

    def outcome(self, engine: Engine, split: str, first: int | None = None) -> Outcome:
        rows, traces = self._sets[split], []
        said: dict[int, int] = {}
        order: list[int] = []
        with count_macs() as counted:
            for places in rows.in_turn(ROWS) if first is None else [list(range(first))]:
                inputs: dict[str, Any] = dict(rows.batch(places)[0])
                out = engine.run(**inputs)
                said.update(zip(places, out.logits.argmax(-1).tolist(), strict=True))
                traces.append(out.trace)
                order += places
        trace, back = Trace.cat(traces), torch.tensor(sorted(range(len(order)), key=lambda i: order[i]))
        for values in (trace.depth, trace.tokens, trace.sureness):
            values.update({s: value[back] for s, value in values.items()})
        names, answers = self.model.config.id2label, [said[place] for place in sorted(said)]
        marks = [100.0 * (a == label) for a, label in zip(answers, rows.labels)]
        return Outcome.of([str(names[a]) for a in answers], marks, trace, counted.total)

    def saving(self, engine: Engine, costs: Sequence[float], parts: Path, tick: Tick) -> list[dict[str, float]]:
        raise InputError(f"{type(self.model).__name__} has several streams, which only the unified model's comparison knows to choose for.")

    def card(self, place: int) -> dict[str, str]:
        row = self._rows["judged"][place]
        asked = row.first if row.second is None else f"{row.first} / {row.second}"
        return {"item": str(place + 1), "asked": asked, "right": str(self.model.config.id2label[row.label])}

    def clock(self, engines: Mapping[str, Engine], items: int, tick: Tick) -> dict[str, list[float]]:
        rows = self._sets["judged"]

        def asked(engine: Engine | None, place: int) -> None:
            inputs: dict[str, Any] = dict(rows.batch([place])[0])
            if engine is None:
                with torch.no_grad():
                    self.model(**inputs)
            else:
                engine.run(**inputs)

        return in_turn({"": None, **engines}, range(0, len(rows), max(1, len(rows) // items))[:items], asked, tick)

    def key(self) -> list[Any]:
        return [self.kind, *([(r.first, r.second, r.label) for r in rows] for rows in self._rows.values())]


def in_turn(engines: Mapping[str, Any], items: Sequence[Any], ask: Callable[[Any, Any], None], tick: Tick) -> dict[str, list[float]]:
    """Seconds of each engine on each item, the engines in turn, one warm-up each."""
    runs = {name: partial(ask, engine) for name, engine in engines.items()}
    out: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(items[0])
    for item in items:
        tick("wall-clock, in turn")
        for name, run in runs.items():
            start = time.perf_counter()
            run(item)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            out[name].append(time.perf_counter() - start)
    return out
