"""SkipDecode: how many layers a token runs depends on its place alone and never rises, so that no keys are ever missing and a batch stays
whole (Del Corro et al. 2023, arXiv:2307.02628).

n(t) falls in a straight line from `most` at the first generated token to `least` at token `length` - 1, and stays there. Not the top
layers are left out but those above the first `warm`: A(t) = the first `warm` layers and the last n(t) - warm. The sets are nested, so a
layer that runs has run for every token before. The prompt runs through all layers. Rounding, and the prompt, are our reading of an
abstract: the paper's tables were not at hand. The model is to be trained with the schedule in force (`exitwise.train.language`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from ..errors import KnobError
from ..lm.plan import Decoding
from ..method import Knob, Method, Settings
from ..run.walk import Plan


def active(most: int, least: int, length: int, warm: int, step: int, layers: int) -> Sequence[int]:
    """Numbers (from 0) of the layers that run for generated token `step`.

    >>> [list(active(6, 3, 32, 1, t, 6)) for t in (0, 16, 31)]
    [[0, 1, 2, 3, 4, 5], [0, 3, 4, 5], [0, 4, 5]]
    """
    share = min(step, length - 1) / max(1, length - 1)
    count = math.floor(most - (most - least) * share + 0.5)
    return sorted({*range(min(warm, count)), *range(layers - max(0, count - warm), layers)})


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One route for all rows. Raises KnobError for a schedule that the model cannot run."""
    depth = layers.get("decoder", 0)
    most, least = settings["most"] or depth, settings["least"] or depth
    if not depth or not settings["warm"] <= least <= most <= depth:
        raise KnobError(
            f"least={least} and most={most} of warm={settings['warm']} do not fit the model's layers, {dict(layers)}. "
            "Allowed: warm <= least <= most <= the decoder's layers; a number that rose would leave keys missing."
        )
    route = partial(active, most, least, settings["length"], settings["warm"])
    return Plan(decompose=False, policy="none", decoding=Decoding(route=route))


METHOD = Method(
    paper="arXiv:2307.02628",
    about="later tokens run fewer layers, by their place alone: no keys are missing, and batches stay whole",
    plan=plan,
    knobs=(
        Knob("most", 0, "layers of the first generated token; 0: all", 0, 1000),
        Knob("least", 0, "layers from token `length` on; 0: all", 0, 1000),
        Knob("length", 64, "tokens along which the number falls", 1, 1_000_000),
        Knob("warm", 1, "layers at the bottom that always run", 1, 1000),
    ),
)
