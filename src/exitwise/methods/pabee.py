"""PABEE: leave when so many exits in a row have given the same answer (Zhou et al. 2020, arXiv:2006.04152, algorithm 1).

One head after each layer but the last, trained together with the model by sum_j j * loss_j / sum_j j (`objective`). The counter rises by
one where an exit's answer is that of the exit before it, and else falls to 0; regression heads (one class) agree when they differ by less
than `tolerance`. Without trained exits, and on a decoder, the model's own head is read. Differs: rows of a batch leave one by one (the
released code: when all agree); each head has its own pooler. Sureness is the counter over (layers - 1), so that `Engine.calibrate` can
choose it; `patience` is the paper's knob.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..errors import KnobError
from ..heads import heads_or_ramps
from ..method import STREAMS, Knob, Method, Settings, reading_knobs, reading_plan
from ..reading import Reading, View
from ..run.cache import POLICIES
from ..run.walk import Plan
from ..train.exits import Labelled, Learner, answer_losses, weighed_by_depth


def streak(view: View, tolerance: float = 0.1) -> Tensor:
    """Exits in a row, up to this one, that agreed with the exit before them, over (layers - 1), (rows,)."""
    logits = view.logits
    answer = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(-1)
    last = view.memory.get("answer")
    if last is None:
        count = torch.zeros(len(answer), dtype=torch.long, device=answer.device)
    else:
        agrees = (answer - last).abs() < tolerance if logits.shape[1] == 1 else answer == last
        count = torch.where(agrees, view.memory["count"] + 1, 0)
    view.memory.update(answer=answer, count=count)
    return count / max(view.at.layers - 1, 1)


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule; `patience` p is the threshold (p - 1/2) / (layers - 1), which p agreements pass and p - 1 do not."""
    patience = settings["patience"]
    measure = partial(streak, tolerance=settings["tolerance"])
    if patience is not None:
        if any(settings[stream] < 1 for stream in STREAMS):
            raise KnobError(f"patience={patience} and a threshold were given, which say the same twice. Leave one of them out.")
        depth = layers.get(STREAMS[-1], next(iter(layers.values())))
        threshold = (patience - 0.5) / max(depth - 1, 1)
        return reading_plan(settings, layers, lambda _: Reading(measure, threshold, settings["minimum"], remembers=True))
    return reading_plan(settings, layers, lambda threshold: Reading(measure, threshold, settings["minimum"], remembers=True))


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """All exits and the model itself, deeper ones weighing more."""
    losses = answer_losses(learner.answers(learner.walk(batch.inputs)), batch.labels)
    return {"loss": weighed_by_depth(losses), "last": losses[-1].detach()}


METHOD = Method(
    paper="arXiv:2006.04152",
    about="rows leave when several exits in a row give the same answer",
    plan=plan,
    knobs=(
        *reading_knobs("Agreements in a row over (layers - 1) above which rows leave."),
        Knob("patience", None, "agreements in a row after which rows leave; None: the thresholds decide", 1, 1000),
        Knob("tolerance", 0.1, "how much answers of a regression head may differ and still agree", 0.0, 1e6),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
        Knob("keys_values", "propagate", "what becomes of a decoder's keys and values of skipped layers", choices=POLICIES),
    ),
    calibrated=STREAMS,
    exits=heads_or_ramps,
    objective=objective,
    frozen=False,
)
