"""Static depth: every row of a stream leaves at the same, fixed depth. The baseline that a dynamic rule must beat at equal cost."""

from __future__ import annotations

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


METHOD = Method(
    paper="none: a baseline",
    about="every row of a stream leaves at the same fixed depth",
    plan=plan,
    knobs=(
        *(Knob(stream, None, _DEPTH, 1, 1000) for stream in ("image", "text", "audio", "decoder")),
        Knob("decompose", True, "streams walk the encoder apart", choices=(True, False)),
        Knob("keys_values", "propagate", "what becomes of keys and values of skipped layers", choices=POLICIES),
    ),
)
