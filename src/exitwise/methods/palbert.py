"""PALBERT: a learnt chance of halting at each depth; leave where the summed chance passes q (Balagansky and Gavrilov 2022,
arXiv:2204.03276).

At depth i the chance to halt here, given that no shallower one did, is lambda_i = sigmoid(g([c_i ; c_i-1])), c_0 = 0, with c a tanh pooler
of the first token and g three linear layers with tanh and one to a single number. So p_i = lambda_i prod_{j<i} (1 - lambda_j), and a row
leaves at the first depth whose sum of p passes q ('Q-exit', no draws). The model's own head reads every depth. Loss (`objective`): sum_i
p_i CE_i + beta KL(prior || p), the prior a geometric one of lambda = 0.1 whose rest lies on the last depth; beta = 0.5. Differs: the last
depth takes the rest, so that p sums to 1 (the released code lets it be less, and cuts small p off); the halting net has a pooler of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import Exits, Shape
from ..method import STREAMS, Knob, Method, Settings, reading_knobs, reading_plan
from ..reading import Reading, View
from ..run.walk import Plan
from ..train.exits import Labelled, Learner, each_loss

HALT = "halt"
PRIOR, BETA = 0.1, 0.5


class Halting(nn.Module):
    """From the tokens of this depth and the one before (None at the first): the pooled state (rows, width), and logit of lambda (rows,)."""

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.pool, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)
        hidden = [part for _ in range(3) for part in (nn.Linear(2 * width, 2 * width), nn.Tanh())]
        self.net = nn.Sequential(*hidden, nn.Linear(2 * width, 1))

    def forward(self, token: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        pooled = torch.tanh(self.pool(token.to(self.pool.weight.dtype)))
        pair = torch.cat([pooled, torch.zeros_like(pooled) if before is None else before], -1)
        return pooled, self.net(self.dropout(pair))[:, 0].float()


def halted(view: View) -> Tensor:
    """The chance to have halted by this depth, (rows,): 1 - prod (1 - lambda)."""
    pooled, logit = view.parts[HALT](view.token, view.memory.get("pooled"))
    going = F.logsigmoid(-logit) + view.memory.get("going", torch.zeros_like(logit))
    view.memory.update(pooled=pooled, going=going)
    return -torch.expm1(going)


def log_chances(logits: Sequence[Tensor]) -> Tensor:
    """ln p_i, (rows, depths), from the logits of lambda at the depths 1..n-1, (rows,) each; depth n takes the rest.

    >>> [round(float(p), 3) for p in log_chances([torch.zeros(1), torch.zeros(1)]).exp()[0]]
    [0.5, 0.25, 0.25]
    """
    stay = torch.stack([F.logsigmoid(-logit) for logit in logits], 1).cumsum(1)
    reach = F.pad(stay, (1, 0))
    return reach + F.pad(torch.stack([F.logsigmoid(logit) for logit in logits], 1), (0, 1))


def prior(layers: int, chance: float = PRIOR) -> Tensor:
    """A geometric distribution over 1..n, (n,), whose rest lies on n.

    >>> [round(float(p), 3) for p in prior(4)]
    [0.1, 0.09, 0.081, 0.729]
    """
    shares = chance * (1 - chance) ** torch.arange(layers, dtype=torch.float)
    shares[-1] = 1 - shares[:-1].sum()
    return shares


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule, which builds on the depths before."""
    return reading_plan(settings, layers, lambda q: Reading(halted, q, settings["minimum"], remembers=True, needs=(HALT,)))


def exits(shape: Shape) -> Exits:
    """The halting net, one for all depths; no heads."""
    return Exits(shape, heads=False, halt=Halting(shape.width))


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """What the depths lose, weighed by the chance to halt there, and how far these chances are from the prior."""
    walked, before, logits = learner.walk(batch.inputs), None, []
    for token in learner.tokens(walked):
        before, logit = learner.exits.parts[HALT](token, before)
        logits.append(logit)
    chances = log_chances(logits)
    task = (chances.exp() * each_loss(learner.answers(walked), batch.labels)).sum(1).mean()
    far = F.kl_div(chances, prior(chances.shape[1]).to(chances).expand_as(chances), reduction="batchmean")
    return {"loss": task + BETA * far, "task": task.detach(), "far": far.detach()}


METHOD = Method(
    paper="arXiv:2204.03276",
    about="rows leave where a learnt, summed chance of halting passes q",
    plan=plan,
    knobs=(
        *reading_knobs("The paper's q: summed chance of halting above which rows leave."),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
    ),
    calibrated=STREAMS,
    exits=exits,
    objective=objective,
    frozen=False,
)
