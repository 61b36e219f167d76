"""What a layer costs: one price for each layer of each stream, in layers (ETR), counted MACs, or milliseconds of this machine.

A price is what one row pays for one layer (of a decoder: for one step). With the prices, depths become a cost without running the model.
ETR has no fixed part, as in the paper; MACs and milliseconds count what every row pays whatever it does: stem, embeddings, head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationError, KnobError
from ..trace import Trace

UNITS = ("etr", "macs", "ms")


@dataclass(frozen=True)
class Prices:
    """unit: see UNITS. layers: stream -> price of its layers 1..n. fixed: what a row pays besides. decoders: streams priced by the step.

    machine: the processor that milliseconds were measured on. Raises CalibrationError for a price that is negative or not finite.
    """

    unit: str
    layers: dict[str, tuple[float, ...]]
    fixed: float = 0.0
    decoders: tuple[str, ...] = ()
    machine: str | None = None

    def __post_init__(self) -> None:
        known_unit(self.unit)
        if not all(0 <= p < float("inf") for p in (self.fixed, *(p for prices in self.layers.values() for p in prices))):
            raise CalibrationError(f"There is a price that is negative or not finite: {self}. Measure again.")
        if self.whole({s: [1.0] * len(p) for s, p in self.layers.items()}) <= 0:
            raise CalibrationError("All layers cost nothing: there is nothing to save. Measure prices, or count layers (cost='etr').")

    @staticmethod
    def of_layers(layers: Mapping[str, int], decoders: Sequence[str]) -> Prices:
        """The prices whose cost is one minus ETR (Tang et al. 2023, in the reading (p + q) / 2): streams of an encoder share one weight."""
        encoders = max(sum(s not in decoders for s in layers), 1)
        prices = {s: ((1.0 if s in decoders else 1 / encoders),) * n for s, n in layers.items()}
        return Prices("etr", prices, 0.0, tuple(s for s in decoders if s in layers))

    def whole(self, ran: Mapping[str, Sequence[float] | Tensor], rows: float = 1.0) -> float:
        """Cost of so many rows, of which `ran[stream][l - 1]` ran layer l of the stream."""
        total = self.fixed * rows
        for stream, counts in ran.items():
            total += sum(float(count) * price for count, price in zip(counts, self.layers[stream], strict=True))
        return total

    def of_trace(self, trace: Trace) -> float:
        """Mean cost of a row of this trace, in the prices' unit; a decoder's rows are those of the sequences, beams together."""
        rows = len(next((d for s, d in trace.depth.items() if s not in self.decoders), next(iter(trace.depth.values()))))
        ran = {s: ran_layers(d, trace.layers[s]) for s, d in trace.depth.items() if s in self.layers}
        return self.whole(ran, rows) / rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Prices:
        """The inverse of to_dict."""
        layers = {s: tuple(p) for s, p in body["layers"].items()}
        return Prices(**{**body, "layers": layers, "decoders": tuple(body["decoders"])})


def known_unit(unit: str) -> str:
    """The unit itself. Raises KnobError for another."""
    if unit not in UNITS:
        raise KnobError(f"cost={unit!r} is not known. Allowed: {', '.join(UNITS)}: layers, counted MACs, measured milliseconds.")
    return unit


def ran_layers(depth: Tensor, layers: int) -> Tensor:
    """(layers,) how many of these depths reached each layer."""
    return (depth.flatten()[:, None] >= torch.arange(1, layers + 1)).sum(0)
