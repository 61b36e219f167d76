"""DeeCap: a shallow exit imagines the deep layers' states, and answers from what was computed and imagined (Fei et al., CVPR 2022).

After layer i of a decoder, p_i = tanh(W h_i) is pooled of the token's state; an imitation net M_j = tanh(A_j p_i + b_j) for each deeper
layer j imagines p_j. A gate g = sigmoid(V tanh(mean of p_1..p_i)) weighs the past against the future: f = 2 g sum_{k<=i} p_k + 2 (1 - g)
sum_{j>i} M_j(p_i). A token leaves when the entropy of the answer is below the paper's threshold: here a certainty above one, as everywhere.
Loss (`objective`): sum_i i CE_i / sum i, and the mean over all pairs i < j of 1 - cos(M_j(p_i), p_j), p_j detached.
Written after what the released code does; the paper's text was not at hand. Differs: the model's own head reads h_i + O f, with O
nothing at first, where the released code has a classifier of its own on f; W and V are shared by all layers; the base is frozen whole
(the released code freezes the three lowest layers); keys and values are kept (the released code runs the prefix again at each step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KnobError
from ..heads import RAMPS, Exits, Shape, nothing
from ..method import Knob, Method, Settings, reading_plan
from ..reading import Reading, certainty
from ..run.cache import POLICIES
from ..run.walk import Plan
from ..train.exits import Labelled, Learner, answer_losses, weighed_by_depth


class Imagining(nn.Module):
    """Ramps that imagine the deeper layers' states from this layer's, and give the head what was computed and imagined."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, self.layers = shape.width, shape.layers
        self.pool, self.gate, self.out = nn.Linear(width, width), nn.Linear(width, 1), nothing(width, width)
        self.nets = nn.ModuleList(nn.Linear(width, width) for _ in range(shape.layers - 1))  # of layers 2..n

    def pooled(self, token: Tensor) -> Tensor:
        """p of a state, (rows, width)."""
        return torch.tanh(self.pool(token.to(self.pool.weight.dtype)))

    def imagined(self, layer: int, pooled: Tensor) -> list[Tensor]:
        """What `layer`'s p says that those of the layers after it will be, each (rows, width)."""
        return [torch.tanh(net(pooled)) for net in self.nets[layer - 1 :]]

    def forward(self, layer: int, token: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """(rows, width): what the head reads. Asked layer by layer, from the first."""
        pooled = self.pooled(token)
        past = memory["past"] = pooled + memory.get("past", torch.zeros_like(pooled))
        return token + self.out(fused(past, self.imagined(layer, pooled), layer, self.gate)).to(token)


def fused(past: Tensor, future: Sequence[Tensor], layer: int, gate: nn.Module) -> Tensor:
    """2 g past + 2 (1 - g) future, (rows, width); past: the sum over the layers 1..layer; future: what is imagined of the others."""
    share = gate(torch.tanh(past / layer)).sigmoid()
    return 2 * share * past + 2 * (1 - share) * torch.stack(list(future)).sum(0)


def imitation(ramps: Imagining, tokens: Sequence[Tensor]) -> Tensor:
    """Mean over rows and pairs of layers i < j of 1 - cos(imagined from i, pooled of j), a scalar; tokens: states of the layers 1..n."""
    pooled = [ramps.pooled(token) for token in tokens]
    pairs = [
        1 - F.cosine_similarity(guess, pooled[layer + place].detach(), dim=-1)
        for layer in range(1, len(tokens))
        for place, guess in enumerate(ramps.imagined(layer, pooled[layer - 1]))
    ]
    return torch.stack(pairs).mean()


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule for the decoder, which is asked at every layer: the past is added up. Raises KnobError for a model without one."""
    if settings["decoder"] < 1 and "decoder" not in layers:
        raise KnobError(f"decoder={settings['decoder']} was given, but the streams are {', '.join(layers)}. This method needs a decoder.")
    return reading_plan(
        settings, layers, lambda threshold: Reading(certainty, threshold, settings["minimum"], remembers=True, needs=(RAMPS,))
    )


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """What the exits say, deeper ones weighing more, and how unlike the imagined states are to the real ones."""
    walked, ramps = learner.walk(batch.inputs), learner.exits.ramps
    assert isinstance(ramps, Imagining)
    losses = answer_losses(learner.answers(walked), batch.labels)
    unlike = imitation(ramps, [state[:, 0] for state in walked.states])
    return {"loss": weighed_by_depth(losses) + unlike, "last": losses[-1].detach(), "unlike": unlike.detach()}


METHOD = Method(
    paper="Fei et al. 2022, DeeCap (CVPR)",
    about="each generated token leaves when an answer that imagines the deeper layers is certain",
    plan=plan,
    knobs=(
        Knob("decoder", 1.0, "Certainty above which a token leaves; 1 or more never. Choose it by calibration.", 0.0, 2.0),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
        Knob("keys_values", "propagate", "what becomes of keys and values of skipped layers", choices=POLICIES),
    ),
    calibrated=("decoder",),
    exits=lambda shape: Exits(shape, heads=False, ramps=Imagining(shape)),
    objective=objective,
    frozen=True,
)
