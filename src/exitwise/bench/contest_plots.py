"""The report's plots of a comparison: fronts on two axes, areas with their intervals, and where each method's rows left."""

from __future__ import annotations

from typing import Any

from .plots import axes_of, colour_of, listed

COLOURS = (
    "#c0392b",
    "#2f6fb0",
    "#3f8f62",
    "#c9762b",
    "#7a5aa6",
    "#a8487a",
    "#1f7a8c",
    "#8e6c2f",
    "#5d6d7e",
    "#b5651d",
    "#4c6b22",
    "#8a949e",
)
AXES = {"etr": ("etr", "cost: layers run, % of full depth (1 - ETR)"), "macs": ("macs_saved", "cost: MACs counted, % of full depth")}


def colours(run: dict[str, Any]) -> dict[str, str]:
    """Method -> its colour throughout the report."""
    return {line["name"]: COLOURS[place % len(COLOURS)] for place, line in enumerate(run["contest"])}


def fronts(run: dict[str, Any], unit: str) -> str:
    """Every setting of every method on the judged items, a line through a method's; what was chosen is ringed, the common range shaded."""
    key, label = AXES[unit]
    found = run["comparison"][unit]
    with axes_of(4.4, 4.3) as (axes, out):
        full = run["full"]["quality"]["value"]
        if found["range"]:
            axes.axvspan(*(100 * end for end in found["range"]), color="#f3f5f7", zorder=0)
        for line in run["contest"]:
            colour, pairs = colours(run)[line["name"]], sorted((100 * (1 - p[key]), p["quality"]) for p in line["points"])
            joined = [*pairs, (100.0, full)] if len(pairs) > 1 else pairs
            style = ":" if line["control"] else "-"
            if joined:
                axes.plot(*zip(*joined), style, color=colour, marker="o", markersize=3, linewidth=1.2, label=line["name"])
            if line["chosen"]:
                axes.plot(
                    100 * (1 - line["chosen"][key]), line["chosen"]["quality"]["value"], "o", color=colour, markersize=9, fillstyle="none"
                )
        axes.axhline(full, color="#30363d", linewidth=0.8, linestyle="--")
        axes.set_xlabel(label)
        axes.set_ylabel(run["task"]["metric"])
        axes.set_xlim(left=0)
        axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, columnspacing=1.2, handletextpad=0.4)
    return out[0]


def areas(run: dict[str, Any]) -> str:
    """Area under each front over the common range, % of full depth's quality, with its 95 % interval; nothing where there is no range."""
    found = run["comparison"]["etr"]["areas"]
    if not found:
        return ""
    with axes_of(4.4, 0.36 * len(found) + 1.1) as (axes, out):
        for place, (name, area) in enumerate(reversed(found.items())):
            value, low, high = (100 * area[key] for key in ("value", "low", "high"))
            reach = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=reach, fmt="o", color=colours(run)[name], capsize=3, markersize=6)
        axes.set_yticks(range(len(found)), list(reversed(found)))
        axes.set_xlabel("area, % of full depth's quality")
    return out[0]


def exits(run: dict[str, Any]) -> str:
    """Share of rows (for the decoder: of tokens) that left at each depth, a panel for each method at what was chosen for it."""
    lines = [line for line in run["contest"] if line["chosen"]]
    if not lines:
        return ""
    with axes_of(4.4, 1.15 * len(lines) + 0.5, rows=len(lines), sharex=True) as (panels, out):
        for axes, line in zip(listed(panels), lines, strict=True):
            streams = line["chosen"]["exits"]
            wide = 0.8 / len(streams)
            for index, (stream, shares) in enumerate(streams.items()):
                places = [depth + wide * (index - (len(streams) - 1) / 2) for depth in range(1, len(shares) + 1)]
                axes.bar(places, [100 * share for share in shares], color=colour_of(stream, index), width=wide, label=stream)
            axes.set_ylim(0, 110)
            axes.set_yticks([0, 50, 100])
            axes.set_xticks(range(1, max(map(len, streams.values())) + 1))
            axes.set_title(line["name"], fontsize=10.5, loc="left", color=colours(run)[line["name"]])
            axes.grid(axis="x", visible=False)
        listed(panels)[-1].set_xlabel("left after layer, % of rows")
        listed(panels)[-1].legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.45, -0.55), ncols=3)
    return out[0]
