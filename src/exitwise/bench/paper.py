"""A paper's figures as data: `papers/NAME.json`, typed in from its tables, with the source; read, never computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown

FOLDER = Path(__file__).parent / "papers"
MAIN = {"answer": "test", "caption": "cider"}  # the figure that is compared, by kind of task


@dataclass(frozen=True)
class Line:
    """One row of a paper's table for one kind of task. figures: metric -> figure in points, `etr` as a share; None where it has none.
    method: whose row it is, where not the paper's own."""

    key: str
    label: str
    figures: Mapping[str, Any] | None
    method: str | None = None

    def figure(self, metric: str) -> float | None:
        """A figure of this row; None where the paper has none."""
        return None if self.figures is None else self.figures.get(metric)


@dataclass(frozen=True)
class PaperTable:
    """One table for one kind of task. reference: key of the row that the others' shares are of."""

    paper: str
    number: str
    title: str
    kind: str
    reference: str
    lines: Sequence[Line]

    def main(self, split: str) -> str:
        """The metric that is compared: for answers the paper's dev figure on a split of that name, its test figure on any other."""
        has_dev = all(line.figures is None or "dev" in line.figures for line in self.lines)
        return "dev" if self.kind == "answer" and has_dev and split.startswith(("dev", "val")) else MAIN[self.kind]

    def kept(self, line: Line, metric: str) -> float | None:
        """The share of the reference row's figure that a row has, in the paper."""
        base = next(each for each in self.lines if each.key == self.reference).figure(metric)
        mine = line.figure(metric)
        return None if mine is None or not base else mine / base


@cache
def read(paper: str) -> dict[str, Any]:
    """All that is known of a paper. Raises UnknownName."""
    known = sorted(file.stem for file in FOLDER.glob("*.json"))
    if paper not in known:
        raise unknown("paper", paper, known)
    found: dict[str, Any] = json.loads((FOLDER / f"{paper}.json").read_text(encoding="utf-8"))
    return found


def table(paper: str, number: str, kind: str) -> PaperTable:
    """One of its tables, for answers or captions. Raises UnknownName, InputError."""
    body = read(paper)
    if number not in body["tables"]:
        raise InputError(
            f"table {number} of {paper} is not one that can be set beside figures of yours. Tables: {', '.join(body['tables'])}."
        )
    found = body["tables"][number]
    lines = [Line(row["key"], row["label"], row[kind], row.get("method")) for row in found["rows"] if row[kind] is not None]
    return PaperTable(paper, number, found["title"], kind, found["reference"], lines)
