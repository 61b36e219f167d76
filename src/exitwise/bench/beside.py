"""A reproduced table for a terminal of 80 columns: the paper's figures and the measured ones side by side, then what differs."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

NONE = "-"


def render(run: dict[str, Any], width: int = 80) -> str:
    """One line per row of the paper: main figure, share kept and ETR, theirs and ours; what the shares differ by, in points."""
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    about, task = run["table"], run["task"]
    console.print(f"Table {about['number']}: {about['title']}", highlight=False)
    console.print(f"paper: {about['paper']}; here: {task['items']} items of {task['folder']}, split {task['split']}", highlight=False)
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    name = "CIDEr" if task["kind"] == "caption" else "acc."
    for column in (
        f"paper\n{name}", "kept\n%", "ETR %\nor i/t", f"here\n{name} [95%]", "kept\n%", "i/t/d\nlayers", "ETR\n%", "kept\ndiff.",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for line in run["lines"]:
        table.add_row(line["label"], *_theirs(line["paper"], about["main"]), *_ours(line))
    console.print(table)
    for each in run["differences"]:
        head, _, rest = each.partition(": ")
        console.print(Padding(f"{head}: {rest}", (0, 0, 0, 2)), highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def _theirs(figures: dict[str, Any], main: str) -> tuple[str, str, str]:
    value, kept = figures.get(main), figures.get("kept")
    cost = "/".join(f"{d:g}" for d in figures["depths"]) if "depths" in figures else _percent(figures.get("etr"))
    return (NONE if value is None else f"{value:.1f}", _percent(kept, 1), cost)


def _ours(line: dict[str, Any]) -> tuple[str, str, str, str, str]:
    row, theirs = line["measured"], line["paper"]["kept"]
    if row is None:
        return NONE, NONE, NONE, NONE, NONE
    held = row["quality"]
    depths = "/".join(f"{row['depth'][s]:.1f}" for s in ("image", "text", "decoder") if s in row["depth"])
    change = NONE if line["kept"] is None or theirs is None else f"{100 * (line['kept'] - theirs):+.1f}"
    quality = f"{held['value']:.1f} {held['low']:.0f}-{held['high']:.0f}"
    return quality, _percent(line["kept"], 1), depths, _percent(row["etr"]["streams"]), change


def _percent(share: float | None, digits: int = 0) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f}"
