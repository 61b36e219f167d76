"""The report on a model, its saturation and its self-test, drawn as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .report import Report
from .selftest import Check


def render(report: Report, profile: Mapping[str, Sequence[float]] | None = None, checks: Sequence[Check] | None = None) -> Group:
    """Everything that was found, one table after the other; print it with a rich console."""
    head = f"{report.model}, family {report.family}, {report.parameters / 1e6:.1f} M parameters"
    parts: list[Text | Table] = [Text(head, style="bold"), _stacks(report)]
    if profile:
        parts.append(_saturation(profile))
    if checks:
        parts.append(_checks(checks))
    return Group(*parts)


def _stacks(report: Report) -> Table:
    table = Table(title="stacks", title_justify="left")
    for name in ("stack", "streams", "layers", "M par.", "what leaves where"):
        table.add_column(name, overflow="fold", justify="right" if name in ("layers", "M par.") else "left")
    for stack in report.stacks:
        table.add_row(stack.path, ", ".join(stack.streams), str(stack.layers), f"{stack.parameters / 1e6:.1f}", stack.leaves)
    return table


def _saturation(profile: Mapping[str, Sequence[float]]) -> Table:
    table = Table(title="mean cosine across each layer", title_justify="left")
    table.add_column("layer", justify="right")
    for stream in profile:
        table.add_column(stream, justify="right", overflow="fold")
    for layer in range(max(len(values) for values in profile.values())):
        table.add_row(str(layer + 1), *(f"{v[layer]:.3f}" if layer < len(v) else "" for v in profile.values()))
    return table


def _checks(checks: Sequence[Check]) -> Table:
    table = Table(title="self-test", title_justify="left")
    for name in ("part", "", "measured"):
        table.add_column(name, overflow="fold", no_wrap=name != "measured")
    for each in checks:
        table.add_row(each.name, Text("ok", style="green") if each.passed else Text("FAILED", style="bold red"), each.figure)
    return table
