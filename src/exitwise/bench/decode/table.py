"""The one table of a run of `bench.decode.run`, for a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

NONE = "-"


def render(run: dict[str, Any], width: int = 100) -> str:
    """Every way: tokens a second, times `generate` and our own full depth, texts that are equal, agreement, acceptance, depth."""
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    task = run["task"]
    title = f"{task['items']} prompts of {task['folder'] or 'a list'}, at most {task['tokens']} new tokens, greedy, batch 1"
    table = Table(title=title, title_justify="left", box=None, header_style="", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("way", no_wrap=True)
    columns = (
        "tokens/s\n[IQR]", "times\ngenerate", "[IQR]", "times\nfull", "equal\ntexts", "agree\n%", "accepted\n%",
        "tokens\na round", "layers\na token",
    )  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in run["decode"]:
        speed, ratio, full = row["tokens_per_second"], row["over_generate"], row["over_full"]
        table.add_row(
            row["label"], f"{speed['median']:.1f} {speed['q1']:.0f}-{speed['q3']:.0f}", f"{ratio['median']:.2f}",
            f"{ratio['q1']:.2f}-{ratio['q3']:.2f}", _number(full and full["median"], 2), f"{row['equal']}/{task['items']}",
            f"{100 * row['agreement']:.1f}", _number(row["acceptance"] and 100 * row["acceptance"], 0), _number(row["tokens_per_round"], 2),
            _number(row["calls_per_token"], 1),
        )  # fmt: skip
    console.print(table)
    console.print(
        "Medians over prompts. full: our loop at full depth. agree: tokens that the whole model finds likeliest after the same text. "
        "layers: calls of a layer for each new token, the prompt's included.",
        highlight=False,
    )
    for row in run["decode"]:
        if row["near"]:
            console.print(f"{row['label']}: {row['near']} of {row['unequal']} unequal texts part at two tokens that are as likely.")
    for each in run["absent"]:
        console.print(f"not compared: {each['key']}: {each['reason']}", highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
