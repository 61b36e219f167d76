"""One self-contained HTML page from the JSON of runs alone: plots, tables and a gallery; no script, no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from exitwise.bench import contest_plots, plots

TASK_TITLES = {"answer": "Choosing an answer", "caption": "Describing a picture"}
TASK_WORDS = {
    "answer": "Is the sentence true of the picture, and what is the answer to the question? The answer is chosen from candidates.",
    "caption": "The model describes a photograph word by word; each word may leave the decoder at another layer.",
}


def write(runs: Sequence[dict[str, Any]], file: str | Path) -> Path:
    """Writes the page and returns its path."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(runs), encoding="utf-8")
    return file


def render(runs: Sequence[dict[str, Any]]) -> str:
    """The page as text. Runs without rows (failed ones) are named, not drawn."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "macs": macs, "number": _number, "shade": shade}
    drawn = [run for run in runs if run.get("rows")]
    contests = [_contest(run) for run in runs if run.get("contest")]
    missing = [run for run in runs if not run.get("rows") and not run.get("contest")]
    sections = [_section(run) for run in drawn]
    page = environment.get_template("report.html")
    return page.render(sections=sections, contests=contests, missing=missing, colour=plots.STREAM_COLOURS)


def _contest(run: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of a comparison."""
    return {
        "run": run,
        "title": TASK_TITLES.get(run["task"]["kind"], "Telling classes apart"),
        "cheapest": {line["name"]: min(1 - p["etr"] for p in line["points"]) for line in run["contest"] if line["points"]},
        "layers": contest_plots.fronts(run, "etr"),
        "macs": contest_plots.fronts(run, "macs"),
        "areas": contest_plots.areas(run),
        "exits": contest_plots.exits(run),
    }


def _section(run: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of one run."""
    ours = next((row for row in run["rows"] if row["key"] == "mue"), run["rows"][-1])
    kind = run["task"]["kind"]
    return {
        "run": run,
        "title": TASK_TITLES.get(kind, kind),
        "words": TASK_WORDS.get(kind, ""),
        "ours": ours,
        "full": run["rows"][0],
        "streams": list(ours["depth"]),
        "quality_plot": plots.quality_against_cost(run),
        "exits_plot": plots.exits(ours),
        "saturation_plot": plots.saturation(run) if run.get("saturation") else "",
        "labels": {row["key"]: row["label"] for row in run["rows"]},
        "gallery": run.get("gallery", []),
        "deepest": ours["layers"],
    }


def _percent(value: float | None, digits: int = 0) -> str:
    """0.4567 -> '46 %'; None and NaN -> a dash."""
    return "–" if value is None or value != value else f"{100 * value:.{digits}f} %".replace("-", "−")


def macs(value: float | None) -> str:
    """Multiply-accumulates with a unit: 1.23e9 -> '1.23 G'."""
    if value is None or value != value:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def shade(depth: int, layers: int) -> str:
    """Background of a token that left at `depth`: pale when early, deep green at full depth."""
    share = (depth - 1) / max(1, layers - 1)
    light, dark = (226, 243, 232), (63, 143, 98)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(light, dark))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > 0.6 else '#1b2b22'}"
