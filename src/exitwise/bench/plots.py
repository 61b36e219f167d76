"""The report's plots: each function takes a run's JSON and returns one SVG to put into the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from exitwise.bench.compare import front

STREAM_COLOURS = {"image": "#2f6fb0", "text": "#c9762b", "decoder": "#3f8f62"}
OTHER_COLOURS = ("#7a5aa6", "#a8487a", "#5d6d7e")
ROW_COLOURS = {"full": "#30363d", "mue": "#c0392b", "joint": "#8e5bb0", "static": "#2f6fb0", "random": "#8a949e"}
MARKERS = {"full": "s", "mue": "o", "joint": "D", "static": "^", "random": "x"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "exitwise",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949e",
    "axes.labelcolor": "#30363d",
    "text.color": "#30363d",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def colour_of(stream: str, index: int = 0) -> str:
    """The colour that a stream has throughout the report."""
    return STREAM_COLOURS.get(stream, OTHER_COLOURS[index % len(OTHER_COLOURS)])


def quality_against_cost(run: dict[str, Any]) -> str:
    """Each way of running as a point with its 95 % interval; curves, where the run holds a sweep, with the front of the static depths."""
    with axes_of(4.4, 4.3) as (axes, out):
        for name, points in run.get("sweep", {}).items():
            pairs = sorted((100 * (1 - point["etr"]), point["quality"]) for point in points)
            colour = ROW_COLOURS.get(name, "#8a949e")
            axes.scatter(*zip(*pairs), s=9, color=colour, alpha=0.35, linewidths=0)
            best = [pairs[i] for i in front(pairs)]
            axes.plot(*zip(*best), color=colour, alpha=0.6, linewidth=1.2)
        for row in run["rows"]:
            value, low, high = (row["quality"][key] for key in ("value", "low", "high"))
            colour = ROW_COLOURS.get(row["key"], "#30363d")
            axes.errorbar(
                100 * (1 - row["etr"]["streams"]),
                value,
                yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                fmt=MARKERS.get(row["key"], "o"),
                color=colour,
                markersize=6.5,
                capsize=2.5,
                linewidth=1.1,
                label=row["label"],
            )
        axes.set_xlabel("cost: layers run, % of full depth (1 - ETR)")
        axes.set_ylabel(run["task"]["metric"])
        axes.set_xlim(left=0)
        axes.legend(fontsize=9.5, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, columnspacing=1.2, handletextpad=0.4)
    return out[0]


def exits(row: dict[str, Any]) -> str:
    """Share of rows (for the decoder: of tokens) that left at each depth, one panel a stream."""
    streams = list(row["exits"])
    with axes_of(4.4, 1.28 * len(streams) + 0.5, rows=len(streams), sharex=True) as (panels, out):
        for index, (axes, stream) in enumerate(zip(listed(panels), streams)):
            counts = row["exits"][stream]
            shares = [100 * count / max(1, sum(counts)) for count in counts]
            depths = range(1, len(counts) + 1)
            axes.bar(depths, shares, color=colour_of(stream, index), width=0.72)
            for depth, share in zip(depths, shares):
                if share >= 0.5:
                    axes.annotate(f"{share:.0f}", (depth, share), ha="center", va="bottom", fontsize=9.5)
            axes.set_ylim(0, 125)
            axes.set_yticks([0, 50, 100])
            axes.set_xticks(list(depths))
            axes.grid(axis="x", visible=False)
            axes.set_ylabel("%")
            axes.set_title(
                f"{stream}, mean {row['depth'][stream]:.2f} of {len(counts)}", fontsize=11, loc="left", color=colour_of(stream, index)
            )
        listed(panels)[-1].set_xlabel("left after layer")
    return out[0]


def saturation(run: dict[str, Any]) -> str:
    """Mean similarity of consecutive states by layer and stream; the middle half of the rows shaded, thresholds dotted."""
    with axes_of(4.4, 4.3) as (axes, out):
        deepest = 1
        for index, (stream, curve) in enumerate(run["saturation"].items()):
            layers = range(1, len(curve["mean"]) + 1)
            deepest = max(deepest, len(curve["mean"]))
            colour = colour_of(stream, index)
            axes.plot(layers, curve["mean"], marker="o", markersize=3.5, color=colour, label=stream)
            axes.fill_between(layers, curve["q1"], curve["q3"], color=colour, alpha=0.15, linewidth=0)
            threshold = run.get("thresholds", {}).get(stream)
            if threshold is not None and threshold < 1:
                axes.axhline(threshold, color=colour, linestyle=":", linewidth=1.1)
        axes.set_xlabel("after layer (1: against the embedding)")
        axes.set_ylabel("cosine with the state before")
        axes.set_xticks(range(1, deepest + 1))
        axes.legend(fontsize=9.5, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=3)
    return out[0]


def listed(panels: Any) -> Sequence[Any]:
    return list(panels.flat) if hasattr(panels, "flat") else [panels]


@contextmanager
def axes_of(width: float, height: float, rows: int = 1, **choices: Any) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that holds the SVG when the block ends. Inches; the page scales the picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    out: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows, 1, figsize=(width, height), layout="constrained", **choices)
        try:
            yield axes, out
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            out.append(_inline(buffer.getvalue()))
        finally:
            pyplot.close(figure)


def _inline(svg: str) -> str:
    """The bare <svg> element, scaling with the page, in the page's own font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r"font: ([^;\"]*?)'[^;\"]*(?=[;\"])", r"font: \1system-ui, sans-serif", svg)
