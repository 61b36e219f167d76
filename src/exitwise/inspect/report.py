"""What can leave where in a model, and how soon its states settle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .. import families
from ..engine import Engine
from ..stack import Family, Stack
from .inputs import answer, example_inputs


@dataclass(frozen=True)
class StackReport:
    """One stack: where it is, who walks it, how big it is. leaves: in words, what can leave where."""

    path: str
    kind: str
    streams: tuple[str, ...]
    layers: int
    parameters: int
    layer: str
    leaves: str


@dataclass(frozen=True)
class Report:
    """What was found in a model. source: the file's name, 'discovered' or 'given'. readout: whether any layer's state can be read out."""

    model: str
    family: str
    parameters: int
    stacks: tuple[StackReport, ...]
    readout: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def inspect(model: nn.Module, family: Family | None = None) -> Report:
    """The stacks and streams of a model. Raises FamilyError where nothing looks like a stack."""
    name, found = ("given", family) if family is not None else families.of(model)
    stacks = []
    for stack in found.stacks_of(model):
        layers = stack.layers(model)
        size = sum(p.numel() for p in nn.ModuleList(dict.fromkeys(layers)).parameters())  # a shared layer counts once
        report = StackReport(
            stack.path, stack.kind, stack.streams, len(layers), size, type(layers[0]).__name__, _leaves(stack, len(layers))
        )
        stacks.append(report)
    return Report(type(model).__name__, name, sum(p.numel() for p in model.parameters()), tuple(stacks), found.readout is not None)


def _leaves(stack: Stack, layers: int) -> str:
    where = f"after any of layers 1..{layers}"
    if stack.kind == "decoder":
        return f"each token of each row, {where}"
    if len(stack.streams) > 1 and stack.spans is not None:
        return f"{' and '.join(stack.streams)} of each row, apart from each other, {where}"
    return f"each row, {where}"


def saturation(model: nn.Module, inputs: Mapping[str, Any] | None = None, family: Family | None = None) -> dict[str, list[float]]:
    """stream -> mean cosine of the states before and after each layer, 1 where nothing moves; streams that share a stack walk apart."""
    engine = Engine(model, "mue", family)
    given = example_inputs(model) if inputs is None else inputs
    with engine.attached(record=True) as session:
        answer(model, given)
    found = session.trace.sureness
    return {s: [float(v) for v in found[s].reshape(-1, n).nanmean(0)] for s, n in engine.layers.items() if s in found}
