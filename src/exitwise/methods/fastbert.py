"""FastBERT: student heads imitate the model's own answer, and rows leave when a student is certain (Liu et al. 2020, arXiv:2004.02178).

The model is fine-tuned, then frozen; a head after each layer but the last learns by the sum of KL(student, teacher) = sum p_s ln(p_s /
p_t), for which no labels are needed (`objective`). A row leaves when H / ln(classes) is below the paper's `speed`, which is a certainty
above 1 - speed. Differs: a student is a tanh pooler and a linear layer (the paper's has a narrow self-attention of its own before).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..heads import Exits
from ..method import STREAMS, Knob, Method, Settings, reading_knobs, reading_plan
from ..reading import Reading, certainty
from ..run.walk import Plan
from ..train.exits import Labelled, Learner


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule, for the stream that answers."""
    return reading_plan(settings, layers, lambda threshold: Reading(certainty, threshold, settings["minimum"]))


def imitation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(student, teacher), from logits (rows, classes); no gradient flows to the teacher.

    >>> half, most = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    >>> round(float(imitation(half, most)), 4)
    0.1438
    """
    mine, other = student.float().log_softmax(-1), teacher.detach().float().log_softmax(-1)
    return (mine.exp() * (mine - other)).sum(-1).mean()


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """The sum over students; labels are not looked at."""
    *students, teacher = learner.answers(learner.walk(batch.inputs))
    return {"loss": torch.stack([imitation(student, teacher) for student in students]).sum()}


METHOD = Method(
    paper="arXiv:2004.02178",
    about="rows leave when a head that imitates the model's own answer is certain",
    plan=plan,
    knobs=(
        *reading_knobs("Certainty above which rows leave: one minus the paper's speed."),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
    ),
    calibrated=STREAMS,
    exits=Exits,
    objective=objective,
    frozen=True,
)
