"""Static depth: every row of a stream leaves at the same, fixed depth. The baseline that a dynamic rule must beat at equal cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from ..criteria import Fixed
from ..method import Knob, Method, Settings
from ..run.cache import POLICIES
from ..run.walk import Plan

_DEPTH = "Layers that every row of the stream runs; None runs all."


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One fixed depth per stream that has one."""
    rules = {s: Fixed(settings[s]) for s in layers if settings.get(s) is not None}
    return Plan(rules, decompose=settings["decompose"], policy=settings["keys_values"])


def sweep(layers: Mapping[str, int]) -> list[tuple[Settings, Mapping[str, float]]]:
    """All combinations of depths."""
    combos = itertools.product(*(range(1, n + 1) for n in layers.values()))
    found = [dict(zip(layers, combo, strict=True)) for combo in combos]
    return [(depths, {s: float(d) for s, d in depths.items()}) for depths in found]


METHOD = Method(
    paper="none: a baseline",
    about="every row of a stream leaves at the same fixed depth",
    plan=plan,
    sweep=sweep,
    knobs=(
        *(Knob(stream, None, _DEPTH, 1, 1000) for stream in ("image", "text", "audio", "decoder")),
        Knob("decompose", True, "streams walk the encoder apart", choices=(True, False)),
        Knob("keys_values", "propagate", "what becomes of keys and values of skipped layers", choices=POLICIES),
    ),
)
