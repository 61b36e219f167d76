"""Writes the table of docs/reproducing-mue.md between its marks, from the newest runs of `exitwise reproduce`.

Run: reproduced.py RESULTS.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from exitwise.bench import record
from exitwise.bench.table import between

MARKS = "<!-- table: written by recipes/shipped/reproduced.py -->", "<!-- end of table -->"
HEAD = (
    "| run | row | paper | its share | its ETR | here [95 %] | share | layers image / text / decoder | ETR |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def lines(run: dict[str, Any]) -> list[str]:
    """One line for each row of the paper's table; rows that were not measured have dashes."""
    task, about, out = run["task"], run["table"], []
    for place, line in enumerate(run["lines"]):
        theirs, row = line["paper"], line["measured"]
        how = ", ".join([run["config"]["preset"], *(f"{k}={v}" for k, v in run["config"]["knobs"].items())])
        name = f"table {about['number']}, {task['kind']}, {how} ({task['items']:,} items)" if place == 0 else ""
        cost = "/".join(f"{d:g}" for d in theirs["depths"]) + " layers" if "depths" in theirs else _percent(theirs["etr"], 0)
        cells = [name, line["label"], f"{theirs[about['main']]:.1f}", _percent(theirs["kept"]), cost]
        if row is None:
            out.append(f"| {' | '.join([*cells, '-', '-', '-', '-'])} |")
            continue
        held, depth = row["quality"], " / ".join(f"{row['depth'][s]:.2f}" for s in ("image", "text", "decoder"))
        quality = f"{held['value']:.1f} [{held['low']:.1f}, {held['high']:.1f}]"
        out.append(f"| {' | '.join([*cells, quality, _percent(line['kept']), depth, _percent(row['etr']['streams'], 0)])} |")
    return out


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def main(results: Path, page: Path = Path("docs/reproducing-mue.md")) -> None:
    """The newest run of each table, task and preset; the page is left alone where there is none."""
    runs = record.latest(results, "reproduce-mue-")
    if not runs:
        sys.exit(f"{results} holds no run of `exitwise reproduce mue`. Make one first.")
    table = "\n".join([HEAD, *(line for run in runs for line in lines(run))])
    between(page, MARKS, table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
