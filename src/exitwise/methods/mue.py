"""MuE: image tokens, text tokens and each generated token leave when their hidden states stop changing (Tang et al., CVPR 2023,
arXiv:2211.11152).

Decomposed encoder (section 3.2): image and text walk the tied layers apart and leave at their own depths. Exit (algorithm 1):
after layer i,
cos(state i-1, state i) > threshold, strictly; the state of layer i is used. Decoder: at every step, with the decaying threshold after CALM.
Differs: rows of a batch leave one by one; the default scope is the mean of the tokens' cosines; skipped layers' keys and values are
projected from the state that left. Thresholds have no values: calibrate. The layer-wise loss that the method is trained with is
`train.losses.layerwise`.

Presets: `corrected` is this; `paper` has the paper's thresholds and schedule (appendix A) where it states them; `released` behaves as the
code that was released with it (OFA's branch feature/MuE), each of whose defects is one knob, D1 to D5 below. The sixth lies in its
data: the image's caption stands in the prompt of visual entailment.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..criteria import SCHEDULES, SCOPES, Saturation
from ..method import Knob, Method, Settings
from ..run.cache import POLICIES
from ..run.walk import Plan

_THRESHOLD = (
    "Cosine above which the stream's rows leave; 1 or more never. Choose it by calibration: one that is forgotten saves nothing (D5)."
)
_PAPER = {"image": 0.9, "text": 0.95, "decoder": 0.99, "schedule": "paper", "beta": 0.95, "tau": 1.0}
_RELEASED = {
    "image_rel_bias": False, "keys_values": "holes", "batch": "flat", "head": "every layer", "scope": "flat", "decoder_scope": "flat",
    "schedule": "released",
}  # fmt: skip


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One saturation rule per stream."""
    rules = {}
    for stream in layers:
        decoder = stream == "decoder"
        rules[stream] = Saturation(
            threshold=settings[stream] if stream in settings else settings["text"],
            scope=settings["decoder_scope"] if decoder else settings["scope"],
            minimum=settings["minimum"],
            schedule=settings["schedule"] if decoder else "static",
            beta=settings["beta"],
            tau=settings["tau"],
        )
    return Plan(
        rules,
        decompose=settings["decompose"],
        policy=settings["keys_values"],
        together=settings["batch"] == "min",
        pooled=settings["batch"] == "flat",
        read_all=settings["head"] == "every layer",
        config={} if settings["image_rel_bias"] else {"image_rel_bias": False},
    )


METHOD = Method(
    paper="arXiv:2211.11152",
    about="image, text and each generated token leave the layers when their hidden states stop changing",
    plan=plan,
    calibrated=("image", "text", "audio", "decoder"),
    presets={
        "corrected": {},
        "paper": _PAPER,
        "paper-answer": {**_PAPER, "decoder": 0.95, "schedule": "static"},
        "released": _RELEASED,
        "released-answer": {**_RELEASED, "schedule": "static"},
    },
    knobs=(
        Knob("image", 1.0, _THRESHOLD, -1.0, 2.0),
        Knob("text", 1.0, _THRESHOLD, -1.0, 2.0),
        Knob("audio", 1.0, _THRESHOLD, -1.0, 2.0),
        Knob("decoder", 1.0, _THRESHOLD, -1.0, 2.0),
        Knob("scope", "token_mean", "how the tokens of a row are combined into one cosine", choices=SCOPES),
        Knob("decoder_scope", "token_mean", "the same for several decoder tokens at once (a prompt)", choices=SCOPES),
        Knob("schedule", "static", "how the decoder's threshold moves with the step", choices=SCHEDULES),
        Knob("beta", 0.95, "weight of the static threshold in the paper's schedule", 0.0, 1.0),
        Knob("tau", 1.0, "temperature of the paper's schedule", 0.0, 100.0),
        Knob("minimum", 1, "least depth of every stream, in layers", 1, 1000),
        Knob("decompose", True, "image and text walk the encoder apart, with tied weights", choices=(True, False)),
        Knob(
            "keys_values",
            "propagate",
            "what becomes of keys and values of skipped layers; 'holes': nothing, so that older keys seem nearer than they are (D2)",
            choices=POLICIES,
        ),
        Knob(
            "batch",
            "compact",
            "'compact': each row leaves by itself; 'min': a batch leaves when its last row is ready; "
            "'flat': by one measurement over all its tokens, pads too (D3)",
            choices=("compact", "min", "flat"),
        ),
        Knob(
            "head",
            "once",
            "'once': it reads the state that leaves; 'every layer': that of each layer before too, for nothing (D4, cost only)",
            choices=("once", "every layer"),
        ),
        Knob(
            "image_rel_bias",
            True,
            "the image's 2-D relative positions are used; false: they are added and lost (D1, the built-in OFA only)",
            choices=(True, False),
        ),
    ),
)
