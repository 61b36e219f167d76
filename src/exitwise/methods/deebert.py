"""DeeBERT: leave at the first exit whose answer has an entropy below S (Xin et al. 2020, arXiv:2004.12993); or whose greatest probability
is above a threshold (softmax response).

One off-ramp (tanh pooler and linear layer on the first token) after each layer but the last. Training in two stages: the model is
fine-tuned as ever; then it is frozen, and the off-ramps learn by the sum of their cross-entropies (`objective`). On a decoder, and on a
classifier without trained exits, the model's own head reads the states, as MuE's authors port it; `Engine.choose` restricts it to the
candidates. Differs: the threshold is on certainty, 1 - H / ln(classes), so that 'surer is higher' holds; `reading.entropy_threshold` turns
S into it. Rows of a batch leave one by one (the released code: batch 1).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..heads import heads_or_ramps
from ..method import STREAMS, Knob, Method, Settings, reading_knobs, reading_plan
from ..reading import Reading, View, certainty
from ..run.cache import POLICIES
from ..run.walk import Plan
from ..train.exits import Labelled, Learner, answer_losses


def maximum(view: View) -> Tensor:
    """The greatest probability, (rows,)."""
    return view.logits.softmax(-1).amax(-1)


MEASURES = {"entropy": certainty, "maximum": maximum}


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule, for the stream that answers."""
    measure = MEASURES[settings["measure"]]
    return reading_plan(settings, layers, lambda threshold: Reading(measure, threshold, settings["minimum"]))


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """The sum of the off-ramps' cross-entropies; the model and its own head are frozen."""
    losses = answer_losses(learner.answers(learner.walk(batch.inputs)), batch.labels)
    return {"loss": losses[:-1].sum(), "last": losses[-1]}


METHOD = Method(
    paper="arXiv:2004.12993",
    about="rows leave when an exit's answer has little entropy, or one great probability",
    plan=plan,
    knobs=(
        *reading_knobs("Certainty (or probability) above which rows leave."),
        Knob(
            "measure", "entropy", "what is compared: one minus the normalised entropy, or the greatest probability", choices=tuple(MEASURES)
        ),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
        Knob("keys_values", "propagate", "what becomes of a decoder's keys and values of skipped layers", choices=POLICIES),
    ),
    calibrated=STREAMS,
    exits=heads_or_ramps,
    objective=objective,
    frozen=True,
)
