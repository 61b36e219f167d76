"""What really happened in a run: where each row left, how often each layer ran. Nothing in here is an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Trace:
    """Depths, layer calls and widths of one run (or of several, joined by `cat`).

    depth: stream -> LongTensor on the CPU. (rows,) for a stream of an encoder, (rows, steps) for a decoder, in layers run, 1..n;
        0 where nothing was computed (a row that had ended).
    layers: stream -> n, the layers of its stack.
    tokens: stream -> LongTensor, (rows,) or (rows, steps): tokens that walked in that row (pads not counted).
    calls: path of a stack -> forward calls of its layers that really took place (hooks on the layers agree, tested).
    rows: path of a stack -> rows summed over those calls: what a batch really computed.
    work: path of a stack -> rows x tokens summed over those calls.
    fills: path of a stack -> rows x tokens whose keys and values were projected for a layer that they had skipped.
    crossed: path of a stack -> rows x source tokens whose cross-attention keys and values were projected.
    head_calls: evaluations of the output head.
    sureness: stream -> (rows, layers) for encoders or (rows, steps, layers): the similarity measured after each layer, NaN where
        it was not measured; only if the session records.
    """

    depth: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)
    fills: dict[str, int] = field(default_factory=dict)
    crossed: dict[str, int] = field(default_factory=dict)
    head_calls: int = 0
    sureness: dict[str, Tensor] = field(default_factory=dict)

    def mean_depth(self, stream: str) -> float:
        """Mean depth of a stream in layers, over rows (and steps) that were computed; NaN if there are none."""
        depth = self.depth[stream]
        return float(depth[depth > 0].double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "depth": {k: v.tolist() for k, v in self.depth.items()},
            "layers": dict(self.layers),
            "tokens": {k: v.tolist() for k, v in self.tokens.items()},
            "calls": dict(self.calls),
            "rows": dict(self.rows),
            "work": dict(self.work),
            "fills": dict(self.fills),
            "crossed": dict(self.crossed),
            "head_calls": self.head_calls,
        }

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> Trace:
        """The trace that `to_dict` wrote; similarities are not in it."""
        tensors = {name: {k: torch.tensor(v, dtype=torch.long) for k, v in given[name].items()} for name in ("depth", "tokens")}
        return Trace(**{**given, **tensors})

    @staticmethod
    def cat(traces: Sequence[Trace]) -> Trace:
        """One trace of several runs: rows below each other, steps padded with 0, counts added."""
        out = Trace()
        for trace in traces:
            out.layers.update(trace.layers)
            out.head_calls += trace.head_calls
            for counter in ("calls", "rows", "work", "fills", "crossed"):
                mine, theirs = getattr(out, counter), getattr(trace, counter)
                for key, count in theirs.items():
                    mine[key] = mine.get(key, 0) + count
        for name, empty in (("depth", 0), ("tokens", 0), ("sureness", float("nan"))):
            parts: dict[str, list[Tensor]] = {}
            for trace in traces:
                for stream, value in getattr(trace, name).items():
                    parts.setdefault(stream, []).append(value)
            setattr(out, name, {stream: _stack_rows(values, empty) for stream, values in parts.items()})
        return out


def _stack_rows(values: list[Tensor], empty: float) -> Tensor:
    """Tensors below each other; the second dimension (steps) is padded with `empty` where it differs."""
    if values[0].dim() < 2 or len({v.shape[1] for v in values}) == 1:
        return torch.cat(values)
    width = max(v.shape[1] for v in values)
    padded = []
    for value in values:
        room = value.new_full((value.shape[0], width - value.shape[1], *value.shape[2:]), empty)
        padded.append(torch.cat([value, room], 1))
    return torch.cat(padded)
