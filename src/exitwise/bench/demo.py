"""The main job on the embedded default: the shipped model, both tasks, full depth beside early exits, a table, a page, one line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..models import shipped_path
from . import record, report, table
from .choosing import telling
from .measure import judge

KEEP = {"answer": 0.99, "caption": 0.98}


def main(out: Path = Path("results"), quick: bool = False, seed: int = 0, page: Path | None = None) -> int:
    """Run both tasks, print tables on stdout and progress on stderr; the last line is the JSON. quick: a few items only. Returns 0."""
    runs = []
    for kind in ("answer", "caption"):
        with tqdm(desc=kind, unit="step", file=sys.stderr, leave=False, mininterval=0.5) as bar:
            limit = 24 if quick else None
            exits, timed = shipped_path() / "exits" / kind, 8 if quick else 24
            run = judge(
                kind,
                exits=exits,
                limit=limit,
                out=out,
                seed=seed,
                keep=KEEP[kind],
                timed=timed,
                name=f"demo-{kind}",
                tick=telling(bar, f"{kind}: "),
            )
        runs.append(run)
        print(table.render(run, 80))
    where = report.write(runs, page or out / "report.html")
    print(f"The report: {where}")
    print(f"Peak memory: {record.peak_gib():.2f} GiB. ETR counts layers, MACs are counted, time is measured: three different things.")
    print(json.dumps({"tasks": {run["task"]["kind"]: summary(run) for run in runs}}))
    return 0


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run's method beside its full depth."""
    rows = {row["key"]: row for row in run["rows"]}
    full, ours = rows["full"], rows["mue"]
    return {
        "metric": run["task"]["metric"],
        "quality_full": round(full["quality"]["value"], 3),
        "quality": round(ours["quality"]["value"], 3),
        "kept": round(ours["kept"]["value"], 4),
        "etr": round(ours["etr"]["streams"], 4),
        "macs_saved": round(ours["macs_saved"], 4),
        "wallclock_saved": round(ours["wallclock_saved"], 4),
        "items": ours["items"],
    }
