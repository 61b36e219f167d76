"""Captions by other scorers than the one that chooses (CIDEr-D): our own BLEU, ROUGE-L and METEOR, and where asked the official ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import InputError
from . import official
from .metrics import bleu, cider
from .overlap import MISSING, meteor, rouge_l

OWN = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
NOTE = "In 0..100; CIDEr, which is CIDEr-D, 100 times its usual scale. *: stages exact and stem alone, another scale than the official one."


def wanted(kind: str) -> None:
    """Raises InputError, before anything runs, where the official scorers cannot judge this task or cannot run at all."""
    if kind != "caption":
        raise InputError(f"The official scorers judge captions, but the task is {kind!r}. Leave --official out, or give --task caption.")
    official.required()


def fill(run: dict[str, Any], said: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], with_official: bool) -> None:
    """Add to a run's rows `own` (and `bleu`, its first four) and, where asked, `official`: scorer -> figure in 0..100 (CIDEr: 100 times
    the usual scale). said: key of a row -> a caption an item. run["missing"]: scorer -> why its figure is not there."""
    found = official.judged(said, references) if with_official else None
    for row in run["rows"]:
        row["own"] = own(said[row["key"]], references)
        row["bleu"] = list(row["own"].values())[:4]
        if found is not None:
            row["official"] = found.of[row["key"]]
    run["missing"] = dict(MISSING) if found is None else found.missing


def own(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Our own figures of one way's captions, each in 0..100 (CIDEr-D: 100 times the usual scale)."""
    values = (*bleu(said, references), fmean(meteor(said, references)), fmean(rouge_l(said, references)), cider(said, references).score)
    return dict(zip(OWN, values, strict=True))


def lines(run: dict[str, Any]) -> list[tuple[str, list[tuple[float | None, str]]]]:
    """(label, a figure or None and its mark for each of `official.NAMES`): a line for each way, and one for its official figures."""
    out = []
    for row in run["rows"]:
        for label, kind in ((row["label"], "own"), ("  official", "official")):
            if kind in row:
                out.append((label, [(row[kind].get(name), "*" if kind == "own" and name == "METEOR" else "") for name in official.NAMES]))
    return out


def render(run: dict[str, Any], width: int = 80) -> str:
    """The table of these figures, a line for each way, the official figures below, and what is missing; empty where a run has none."""
    rows = lines(run)
    if not rows:
        return ""
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("captions", no_wrap=True)
    for name in official.NAMES:
        table.add_column(name, justify="right", no_wrap=True)
    for label, figures in rows:
        table.add_row(label, *("-" if value is None else f"{value:.1f}{mark}" for value, mark in figures))
    console.print(table)
    console.print(NOTE)
    for name, why in run.get("missing", {}).items():
        console.print(f"missing: {name}: {why}")
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())
