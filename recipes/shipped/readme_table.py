"""Writes the table of README.md between its marks, from the newest runs of `make bench`. Run: readme_table.py RESULTS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from exitwise.bench import record
from exitwise.bench.table import between

MARKS = "<!-- table: written by recipes/shipped/readme_table.py -->", "<!-- end of table -->"
HEAD = (
    "| task | way | quality [95 %] | kept | depth image / text / decoder | ETR | MACs saved | time saved (batch 1) |\n"
    "|---|---|---|---|---|---|---|---|"
)


def lines(run: dict[str, Any]) -> list[str]:
    """One line of the table for each way of a run."""
    task, out = run["task"], []
    for row in run["rows"]:
        first = f"{run['name']} ({task['metric']}, {task['items']:,} items)" if row["key"] == "full" else ""
        held, depth = row["quality"], " / ".join(f"{d:.2f}" for d in row["depth"].values())
        quality = f"{held['value']:.1f} [{held['low']:.1f}, {held['high']:.1f}]"
        out.append(
            f"| {first} | {row['label']} | {quality} | {100 * row['kept']['value']:.1f} % | {depth} "
            f"| {100 * row['etr']['streams']:.0f} % | {100 * row['macs_saved']:.0f} % | {100 * row['wallclock_saved']:.0f} % |"
        )
    return out


def main(results: Path, page: Path = Path("README.md")) -> None:
    """The held-out runs first, then the demo's."""
    runs = [*record.latest(results, "heldout-"), *record.latest(results, "demo-")]
    table = "\n".join([HEAD, *(line for run in runs for line in lines(run))])
    between(page, MARKS, table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
