"""The one table of a run, for a terminal of 80 columns; and where a table stands in a page."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import InputError


def render(run: dict[str, Any], width: int = 80) -> str:
    """Every way: quality with its interval, share kept, mean depths, ETR, change in MACs, layer calls an item, milliseconds,
    change in time."""
    task = run["task"]
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    title = f"{task['kind']}: {task['items']} items, {task['folder']}, split {task['split']}"
    table = Table(title=title, title_justify="left", box=None, header_style="", pad_edge=False, padding=(0, 1, 0, 0))
    streams = list(run["rows"][0]["depth"])
    labels = {row["key"]: row["label"] for row in run["rows"]}
    table.add_column("way", no_wrap=True)
    for name in (
        f"{task['metric']}\n[95%]",
        "kept\n%",
        "/".join(s[0] for s in streams),
        "ETR\n%",
        "MACs\n%",
        "calls",
        "ms\n[IQR]",
        "time\n%",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in run["rows"]:
        held, clock = row["quality"], row["wallclock_ms"]
        table.add_row(
            row["label"],
            f"{held['value']:.1f} {held['low']:.0f}-{held['high']:.0f}",
            f"{100 * row['kept']['value']:.1f}",
            _depths(row, streams),
            f"{100 * row['etr']['streams']:.0f}",
            f"{0.0 - 100 * row['macs_saved']:+.0f}",
            f"{row['calls']:.0f}",
            f"{clock['median']:.0f} {clock['q1']:.0f}-{clock['q3']:.0f}",
            f"{0.0 - 100 * row['wallclock_saved']:+.0f}",
        )
    console.print(table)
    initials, names = "/".join(s[0] for s in streams), ", ".join(streams)
    console.print(f"{initials}: mean layers run by {names}. calls: layer calls an item. MACs and time: change, counted and measured.")
    for name, group in run.get("groups", {}).items():
        told = ", ".join(
            f"{labels[key]} {way['quality']:.1f} ({_depths(way, streams)})"
            for key, way in group["ways"].items()
            if key in ("full", "mue", "static", "saved")
        )
        console.print(f"{name} ({group['items']}): {told}")
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def between(page: Path, marks: tuple[str, str], table: str) -> None:
    """Put a table into a page, in the place of what stands between two marks. Raises InputError where the marks are not there."""
    text = page.read_text(encoding="utf-8")
    start, end = (re.escape(mark) for mark in marks)
    made, count = re.subn(f"({start}\n).*?({end})", lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.S)
    if count != 1:
        raise InputError(f"{page} holds the marks {marks[0]!r} and {marks[1]!r} {count} times. They must stand there once, each on a line.")
    page.write_text(made, encoding="utf-8")


def _depths(way: dict[str, Any], streams: list[str]) -> str:
    return "/".join(f"{way['depth'][stream]:.1f}" for stream in streams)
