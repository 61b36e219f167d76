"""Which method to take: one sentence with its reason, from a comparison's record alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST = 0.01  # of the MACs: below it nothing was saved


def advice(run: Mapping[str, Any]) -> str:
    """The method that saved the most MACs at what was chosen for it, if that is something; with what it kept, and how sure that is.

    One whose judged interval lies below what was asked is passed over.
    """
    keep, metric, items = run["config"]["keep"], run["task"]["metric"], run["task"]["items"]
    lines = [line for line in run["contest"] if line["chosen"] and not line["control"]]
    lines = sorted((line for line in lines if line["chosen"]["macs_saved"] > LEAST), key=lambda line: -line["chosen"]["macs_saved"])
    held = [line for line in lines if line["chosen"]["kept"]["high"] >= keep]
    if lines and not held:
        best = max(lines, key=lambda line: line["chosen"]["kept"]["value"])
        return (
            f"Take none: run at full depth, because every method fell short of the {100 * keep:g} % of the {metric} that was asked, by "
            f"more than luck on {items} judged items; {best['name']} came nearest with {100 * best['chosen']['kept']['value']:.1f} %. "
            "Choose with --margin, or on more calibration items."
        )
    lines = held
    if not lines:
        return (
            f"Take none: run at full depth, because no method that fits kept {100 * keep:g} % of the {metric} on the calibration items and "
            "saved anything for it."
        )
    best = lines[0]
    one, kept = best["chosen"], best["chosen"]["kept"]
    reason = (
        f"Take {best['name']}: at the settings chosen on the calibration items it saves {100 * one['macs_saved']:.0f} % of the MACs and "
        f"{100 * one['etr']:.0f} % of the layers, and keeps {100 * kept['value']:.1f} % "
        f"[{100 * kept['low']:.1f}, {100 * kept['high']:.1f}] "
        f"of the full depth's {metric} on {items} judged items"
    )
    if len(lines) > 1:
        other = lines[1]
        reason += f", where {other['name']}, the next, saves {100 * other['chosen']['macs_saved']:.0f} %"
    return f"{reason}{_doubt(run, best['name'])}{_short(kept, keep)}."


def _doubt(run: Mapping[str, Any], name: str) -> str:
    """Whether its front is told apart from the best other one."""
    found = run["comparison"]["etr"]
    near = [
        pair["worse"] if pair["better"] == name else pair["better"]
        for pair in found["pairs"]
        if name in (pair["better"], pair["worse"]) and pair["low"] <= 0 <= pair["high"]
    ]
    usable = {line["name"] for line in run["contest"] if not line["control"]}
    near = [other for other in near if other in usable]
    if not near:
        return ""
    return f"; over all costs its front is not told apart from that of {', '.join(near[:3])}{' and others' if len(near) > 3 else ''}"


def _short(kept: Mapping[str, float], keep: float) -> str:
    """A warning where the judged items do not bear out what was asked."""
    if kept["value"] >= keep:
        return ""
    return f"; that is less than the {100 * keep:g} % that was asked: choose with --margin, or on more calibration items"
