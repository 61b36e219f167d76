"""Random exits: every row (and every generated token) draws its depth. The control that shows whether a rule knows anything.

Give it another method's histogram of depths and it has the same mean cost.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..criteria import Drawn
from ..method import Knob, Method, Settings
from ..run.cache import POLICIES
from ..run.walk import Plan

_WEIGHTS = "Weights of the depths 1..n, one per layer; None runs all layers."


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One draw per stream that has weights."""
    rules = {s: Drawn(tuple(settings[s])) for s in layers if settings.get(s) is not None}
    return Plan(rules, decompose=settings["decompose"], policy=settings["keys_values"], seed=settings["seed"])


def sweep(layers: Mapping[str, int]) -> list[tuple[Settings, Mapping[str, float]]]:
    """Depths drawn with weights r^1, r^2, ..., the same r for all streams: from nearly always the first layer to nearly always the last.

    >>> [round(depths["text"], 2) for _, depths in sweep({"text": 3})][::5]
    [1.01, 1.29, 2.86]
    """
    found: list[tuple[Settings, Mapping[str, float]]] = []
    for power in range(-7, 8):
        ratio = 2.0**power
        weights = {s: tuple(ratio**d / sum(ratio**k for k in range(1, n + 1)) for d in range(1, n + 1)) for s, n in layers.items()}
        depths = {s: sum(d * w for d, w in enumerate(each, 1)) for s, each in weights.items()}
        found.append((weights, depths))
    return found


METHOD = Method(
    paper="none: a control",
    about="every row and token draws its depth from given weights",
    plan=plan,
    sweep=sweep,
    control=True,
    knobs=(
        *(Knob(stream, None, _WEIGHTS) for stream in ("image", "text", "audio", "decoder")),
        Knob("seed", 0, "seed of the draws", 0, 2**31),
        Knob("decompose", True, "streams walk the encoder apart", choices=(True, False)),
        Knob("keys_values", "propagate", "what becomes of keys and values of skipped layers", choices=POLICIES),
    ),
)
