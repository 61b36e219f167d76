"""The one table of a comparison, for a terminal of 80 columns."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

NONE = "-"


def render(run: dict[str, Any], width: int = 80) -> str:
    """A line for each method, the greatest area first: at what was chosen for it the quality kept, layers, MACs and time saved; the cost
    of its cheapest setting, and its area under the front with the interval."""
    task, found = run["task"], run["comparison"]["etr"]
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(f"{task['kind']}: {task['items']} items of {task['folder']}; settings chosen on {task['calibration']} others")
    full = run["full"]["quality"]
    console.print(f"full depth: {task['metric']} {full['value']:.1f} [{full['low']:.1f}, {full['high']:.1f}]")
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("kept %\n[95%]", "ETR\n%", "MACs\n%", "time\n%", "from\ncost", "area %\n[95%]"):
        table.add_column(name, justify="right", no_wrap=True)
    order = list(found["areas"])
    for line in sorted(run["contest"], key=lambda line: order.index(line["name"]) if line["name"] in order else len(order)):
        table.add_row(line["name"] + ("*" if line["control"] else ""), *_chosen(line), _cheapest(line), _area(found, line["name"]))
    console.print(table)
    if found["range"]:
        low, high = found["range"]
        console.print(
            f"area: mean quality over the costs {low:.2f} to {high:.2f} (share of layers) that all fronts reach, % of full depth's. from "
            "cost: the cheapest setting. kept to time: at the cheapest setting that kept "
            f"{100 * run['config']['keep']:g} % on the calibration items (-: none did); changes, counted and measured. *: a control."
        )
    else:
        console.print("No area: there is no range of cost that all fronts reach. *: a control.")
    for text in _told_apart(run):
        console.print(text)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def _points(share: float) -> str:
    """A signed difference in points, never -0.00.

    >>> _points(-0.00001), _points(0.0123)
    ('+0.00', '+1.23')
    """
    return f"{round(100 * share, 2) + 0.0:+.2f}"


def _chosen(line: dict[str, Any]) -> tuple[str, str, str, str]:
    one = line["chosen"]
    if one is None:
        return NONE, NONE, NONE, NONE
    kept = one["kept"]
    time = f"{0.0 - 100 * one['time_saved']:+.0f}" if "time_saved" in one else NONE
    told = f"{100 * kept['value']:.1f} {100 * kept['low']:.0f}-{100 * kept['high']:.0f}"
    return told, f"{100 * one['etr']:.0f}", f"{0.0 - 100 * one['macs_saved']:+.0f}", time


def _cheapest(line: dict[str, Any]) -> str:
    return f"{min(1 - p['etr'] for p in line['points']):.2f}" if line["points"] else NONE


def _area(found: dict[str, Any], name: str) -> str:
    area = found["areas"].get(name)
    return NONE if area is None else f"{100 * area['value']:.1f} {100 * area['low']:.0f}-{100 * area['high']:.0f}"


def _told_apart(run: dict[str, Any]) -> list[str]:
    """Which others the first one's area is told apart from."""
    found = run["comparison"]["etr"]
    first = next(iter(found["areas"]), None)
    out = []
    for pair in found["pairs"]:
        if pair["better"] == first:
            sure = "" if pair["low"] > 0 else ": not told apart"
            out.append(
                f"{first} - {pair['worse']}: {_points(pair['value'])} points [{_points(pair['low'])}, {_points(pair['high'])}]{sure}"
            )
    return out
