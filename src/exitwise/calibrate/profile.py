"""Prices measured: what each layer of each stream costs a row, in counted MACs or in milliseconds of this machine, at full depth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..cost import count_macs
from ..errors import CalibrationError
from ..machine import device, processor
from ..trace import Trace
from .budget import NEVER
from .prices import Prices, known_unit

if TYPE_CHECKING:
    from ..engine import Engine

Call = Callable[["Engine"], Trace]
Events = dict[str, list[list[float]]]  # path of a stack -> layer -> what each real call of it took
ITEMS = 8  # rows that are enough for a median


def prices_of(engine: Engine, unit: str, calls: Sequence[Call], turns: int = 3) -> Prices:
    """The prices in `unit` ('etr', 'macs', 'ms'). calls: each runs one item through the engine that it is given, and returns the trace.

    Every call is made at full depth, `turns` times for milliseconds after one to warm up; medians over calls and steps. A decoder's price
    is that of one step. Streams of an encoder that walk together pay the same share. `fixed` is what the layers do not take, such as the
    stem and, at the calls' own lengths, the head. Raises CalibrationError without calls, or where a stream never ran.
    """
    decoders = [s for s, kind in engine.streams.items() if kind == "decoder"]
    if known_unit(unit) == "etr":
        return Prices.of_layers(engine.layers, decoders)
    if not calls:
        raise CalibrationError("There is nothing to measure prices on. Give a few rows.")
    whole = engine.with_settings(**{s: NEVER for s in engine.layers if s in engine.method.calibrated})
    seen: dict[str, list[list[float]]] = {s: [[] for _ in range(n)] for s, n in engine.layers.items()}
    fixed: list[float] = []
    for turn in range(1 + turns if unit == "ms" else 1):
        for call in calls:
            trace, events, total = _measured(whole, call, unit)
            if turn or unit == "macs":
                fixed.append(_noted(engine, trace, events, total, seen))
    silent = sorted(s for s, layers in seen.items() if not all(layers))
    if silent:
        raise CalibrationError(f"No layer of {', '.join(silent)} ran in the calls that were given. Give whole items.")
    layers = {s: tuple(statistics.median(each) for each in layers) for s, layers in seen.items()}
    name = f"{processor()}, {torch.get_num_threads()} threads" if device() == "cpu" else device()
    return Prices(unit, layers, max(0.0, statistics.median(fixed)), tuple(decoders), name if unit == "ms" else None)


def _measured(engine: Engine, call: Call, unit: str) -> tuple[Trace, Events, float]:
    """(trace, what each real call of a layer took, what the whole call took)."""
    events: Events = {stack.path: [[] for _ in stack.layers(engine.model)] for stack in engine.family.stacks_of(engine.model)}
    with ExitStack() as undo:
        if unit == "macs":
            counted = undo.enter_context(count_macs())
            clock: Callable[[], float] = lambda: float(counted.total)  # noqa: E731 - two clocks side by side
        else:
            clock = _milliseconds
        for stack in engine.family.stacks_of(engine.model):
            for layer, took in zip(stack.layers(engine.model), events[stack.path], strict=True):
                undo.enter_context(_clocked(layer, took, clock))
        start = clock()
        trace = call(engine)
        return trace, events, clock() - start


def _milliseconds() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


@contextmanager
def _clocked(layer: nn.Module, took: list[float], clock: Callable[[], float]) -> Iterator[None]:
    """What each call of the layer takes is appended to `took` in this block."""
    starts: list[float] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_: starts.append(clock())),
        layer.register_forward_hook(lambda *_: took.append(clock() - starts.pop())),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noted(engine: Engine, trace: Trace, events: Events, total: float, seen: dict[str, list[list[float]]]) -> float:
    """Notes what each layer took from each row; returns what is left of the whole call for each row."""
    for stack in engine.family.stacks_of(engine.model):
        present: list[Any] = [s for s in stack.streams if s in trace.depth]
        for layer, took in enumerate(events[stack.path]):
            apart = bool(present) and len(took) % len(present) == 0 and len(took) > 0
            for number, each in enumerate(took):
                for stream in [present[number % len(present)]] if apart else present:
                    share = 1 if apart else len(present)
                    seen[stream][layer].append(each / share / len(trace.depth[stream]))
    encoders = [len(d) for s, d in trace.depth.items() if engine.streams[s] == "encoder"]
    rows = encoders[0] if encoders else len(next(iter(trace.depth.values())))
    return (total - sum(map(sum, (took for layers in events.values() for took in layers)))) / rows
