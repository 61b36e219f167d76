"""Writes README.md's table of language models between its marks, from the newest runs of `--only decode`. Run: readme_table.py RESULTS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from exitwise.bench import record
from exitwise.bench.table import between

MARKS = "<!-- language: written by recipes/language/readme_table.py -->", "<!-- end of language -->"
HEAD = (
    "| run | way | tokens/s | times `generate` [quartiles] | times our full depth | equal texts | agreement | tokens a round |\n"
    "|---|---|---|---|---|---|---|---|"
)
RUNS = ("decode-lossless", "decode-rivals", "decode-lossy", "decode-gemma3")


def lines(run: dict[str, Any]) -> list[str]:
    """One line of the table for each way of a run."""
    items, out = run["task"]["items"], []
    for row in run["decode"]:
        first = f"{run['name']} ({items} prompts, {run['task']['tokens']} tokens)" if row is run["decode"][0] else ""
        speed, ratio, full, many = row["tokens_per_second"], row["over_generate"], row["over_full"], row["tokens_per_round"]
        out.append(
            f"| {first} | {row['label']} | {speed['median']:.1f} | {ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}] "
            f"| {'-' if full is None else '{:.2f}'.format(full['median'])} | {row['equal']}/{items} | {100 * row['agreement']:.1f} % "
            f"| {'-' if many is None else f'{many:.2f}'} |"
        )
    return out


def main(results: Path, page: Path = Path("README.md")) -> None:
    """The runs in their order, the newest of each."""
    runs = [run for name in RUNS for run in record.latest(results, name) if run["name"] == name]
    table = "\n".join([HEAD, *(line for run in runs for line in lines(run))])
    between(page, MARKS, table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
