"""FFN-SkipLLM: a token that its feed-forward nets hardly change any more does without them, attention always runs (Jaiswal et al. 2024,
arXiv:2404.03865).

After a layer's attention, cos(x, x + net(x)) with the residual says how far the token is settled; from `decoder` on, the nets of the
layers that follow are left out, until the cold ones at the top. The first `warm` tokens run everything. No keys are ever missing.
Threshold, borders and warm-up are not in what was read of the paper: calibrate.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import KnobError
from ..lm.plan import Decoding, SkipFFN
from ..method import Knob, Method, Settings
from ..run.walk import Plan


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """Raises KnobError for a model without a decoder, or with fewer layers than are cold."""
    depth = layers.get("decoder", 0)
    cold = -(-depth // 8) if settings["cold"] is None else settings["cold"]
    if not depth or 2 * cold >= depth:
        raise KnobError(f"cold={cold} at both ends leaves no layer whose net could be skipped; the model has {dict(layers)}.")
    skip = None if settings["decoder"] > 1 else SkipFFN(settings["decoder"], (cold, cold), settings["warm"])
    return Plan(decompose=False, policy="none", decoding=Decoding(skip=skip))


METHOD = Method(
    paper="arXiv:2404.03865",
    about="attention always runs; feed-forward nets that hardly change a token are left out",
    plan=plan,
    knobs=(
        Knob("decoder", 1.5, "Cosine around a net from which those that follow are left out; above 1 never.", -1.0, 2.0),
        Knob("cold", None, "layers at each end whose nets always run; none: an eighth, rounded up", 0, 1000),
        Knob("warm", 8, "generated tokens that run everything at first", 0, 1_000_000),
    ),
)
