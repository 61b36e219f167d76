"""BERxiT: exits learn when they are wrong, and rows leave where that is unlikely (Xin et al. 2021, EACL).

Alternating training (`objective`): at even steps the last exit's loss alone, at odd steps the sum of all exits'; so the model keeps its own
quality. Learning to exit: one linear layer with a sigmoid, shared by all exits, says from an exit's pooled state how likely its answer is
wrong; target 1 where the answer is not the label (regression: tanh |y - label|), squared error, learnt at the odd steps. A row leaves where
that is below the paper's threshold u, which is a sureness above 1 - u (released default: u = 0.005). Differs: the pooled states get no
gradient from the learning to exit; rows of a batch leave one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..heads import Exits, Said, Shape
from ..method import STREAMS, Knob, Method, Settings, reading_knobs, reading_plan
from ..reading import Reading, View
from ..run.walk import Plan
from ..train.exits import Labelled, Learner, answer_losses

WRONG = "wrong"


def right(view: View) -> Tensor:
    """One minus the learnt probability that this exit's answer is wrong, (rows,)."""
    return 1 - view.parts[WRONG](view.said.feature.detach())[:, 0].float().sigmoid()


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule, for the stream that answers."""
    return reading_plan(settings, layers, lambda threshold: Reading(right, threshold, settings["minimum"], needs=(WRONG,)))


def exits(shape: Shape) -> Exits:
    """A head after each layer but the last, and the shared layer that learns when they are wrong."""
    return Exits(shape, wrong=nn.Linear(shape.width, 1))


def doubt_loss(part: nn.Module, said: list[Said], labels: Tensor) -> Tensor:
    """Sum over exits of the mean squared error of the learnt probability of being wrong."""
    losses = []
    for feature, logits in said:
        if logits.shape[1] == 1:
            target = (logits.detach()[:, 0].float() - labels.float()).abs().tanh()
        else:
            target = (logits.argmax(-1) != labels).float()
        losses.append((part(feature.detach())[:, 0].float().sigmoid() - target).square().mean())
    return torch.stack(losses).sum()


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """Even steps: the last exit alone. Odd steps: all exits, and when they are wrong."""
    walked = learner.walk(batch.inputs)
    if batch.step % 2 == 0:
        return {"loss": answer_losses([walked.out.logits], batch.labels)[0]}
    said = learner.said(walked)
    losses = answer_losses([*(s.logits for s in said), walked.out.logits], batch.labels)
    doubt = doubt_loss(learner.exits.parts[WRONG], said, batch.labels)
    return {"loss": losses.sum() + doubt, "last": losses[-1].detach(), "doubt": doubt.detach()}


METHOD = Method(
    paper="Xin et al. 2021, BERxiT (EACL)",
    about="rows leave where an exit has learnt that its answer is unlikely to be wrong",
    plan=plan,
    knobs=(
        *reading_knobs("Learnt probability of being right above which rows leave."),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
    ),
    calibrated=STREAMS,
    exits=exits,
    objective=objective,
    frozen=False,
)
