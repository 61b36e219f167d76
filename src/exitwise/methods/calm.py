"""CALM: each generated token leaves when a measure of confidence reaches a threshold that falls with the step (Schuster et al. 2022,
arXiv:2207.07061).

Three measures after layer i: 'softmax', the greatest probability minus the second; 'saturation', the cosine of consecutive states (none at
the first layer); 'classifier', a linear layer, one for all layers, trained with the rest frozen to say whether layer i answers what the
last layer answers (`objective`: cross-entropy balanced over the two classes, mean over the layers before the last). A token leaves at or
above lambda_t. Two decays are known: 'paper', clip(0.9 lambda + 0.1 exp(-tau t / N), 0, 1), and 'released', lambda (0.9 + 0.1 exp(-tau t /
N)). The model itself is trained by `train.losses.layerwise` with weights 'linear'. Differs: rows of a batch leave one by one unless
batch='min'; a threshold of 1 or more never leaves, whatever the decay makes of it.
The released code has three oracles; all layers run in them, so that nothing is saved and depths are those at which a token would leave.
Preset 'oracle-cache': an exit's words with a true cache (skipped layers' keys and values are made exactly); what it gains over the default
is what propagated ones cost. Preset 'oracle-words' (there `oracle_tok_noisy_cache`): full depth's words with a noisy cache. Each token runs
all layers over the cache as the exits before it left it, and full depth says the word; the token's own keys and values beyond its exit are
then those projected from the state that left. What it falls short of full depth is what such keys and values do alone; the rest of the loss
at this threshold is the exits' own words. The third, exits that look back, is the method `oracle` (there in a noisy cache).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..criteria import Step, cosine, paper_schedule
from ..errors import KnobError
from ..heads import Exits
from ..method import RANK, Knob, Method, Settings, reading_plan
from ..reading import Reading, View, still
from ..run.cache import POLICIES
from ..run.walk import Plan
from ..train.exits import Labelled, Learner
from ..train.losses import IGNORED

READY = "ready"
WORDS = ("exit", "full")


def gap(view: View) -> Tensor:
    """The greatest probability minus the second greatest, (rows,)."""
    first, second = view.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


def saturation(view: View) -> Tensor:
    """Cosine of the token's states before and after the layer, (rows,); 0 at the first layer, where nothing was computed before."""
    if view.at.layer == 1:
        return torch.zeros(len(view.token), device=view.token.device)
    return cosine(view.before.float(), view.token.float())


def classified(view: View) -> Tensor:
    """The learnt probability that this layer already answers what the last one would, (rows,)."""
    part: Any = view.parts[READY]
    return part(view.token.to(part.weight.dtype))[:, 0].float().sigmoid()


MEASURES: dict[str, Callable[[View], Tensor]] = {"softmax": gap, "saturation": saturation, "classifier": classified}


def paper_decay(threshold: float, at: Step, tau: float) -> float:
    """clip(0.9 lambda + 0.1 exp(-tau t / N), 0, 1)."""
    return paper_schedule(threshold, at.step, at.steps, 0.9, tau)


def released_decay(threshold: float, at: Step, tau: float) -> float:
    """lambda * (0.9 + 0.1 exp(-tau t / N)), as T5X and FREE have it.

    >>> [round(released_decay(0.8, Step(1, 4, t, 10), 4.0), 4) for t in (0, 5, 10)]
    [0.8, 0.7308, 0.7215]
    """
    return threshold * (0.9 + 0.1 * math.exp(-tau * at.step / max(at.steps, 1)))


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """One reading rule for the decoder. Raises KnobError for a model without one."""
    if settings["decoder"] < 1 and "decoder" not in layers:
        raise KnobError(f"decoder={settings['decoder']} was given, but the streams are {', '.join(layers)}. This method needs a decoder.")
    full = settings["words"] == "full"
    if full and (settings["keys_values"] != "propagate" or settings["rank"]):
        raise KnobError(
            f"words='full' shows what propagated keys and values cost, but keys_values={settings['keys_values']!r} and "
            f"rank={settings['rank']} were given. Use keys_values='propagate' and rank=0 with it."
        )
    kind, tau = settings["decay"], settings["tau"]
    decay = still if kind == "none" else partial(paper_decay if kind == "paper" else released_decay, tau=tau)
    measure = settings["measure"]
    needs = (READY,) if measure == "classifier" else ()
    found = reading_plan(
        settings,
        layers,
        lambda threshold: Reading(MEASURES[measure], threshold, settings["minimum"], strict=False, decay=decay, needs=needs),
    )
    return replace(found, shadow=full)


def balanced(logits: Tensor, ready: Tensor) -> Tensor:
    """Binary cross-entropy in which each of the two classes weighs a half (one that does not occur: nothing), a scalar."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), ready.float(), reduction="none")
    return torch.stack([losses[kind].mean() for kind in (ready, ~ready) if kind.any()]).mean()


def objective(learner: Learner, batch: Labelled) -> dict[str, Tensor]:
    """The classifier alone, from the teacher-forced decoder; labels (rows, tokens) only say where something is asked."""
    asked = batch.labels != IGNORED
    states = [state[asked] for state in learner.walk(batch.inputs).states]
    with torch.no_grad():
        said = [learner.read(state[:, None])[:, 0].argmax(-1) for state in states]
    part = learner.exits.parts[READY]
    return {"loss": torch.stack([balanced(part(s)[:, 0], a == said[-1]) for s, a in zip(states[:-1], said[:-1], strict=True)]).mean()}


METHOD = Method(
    paper="arXiv:2207.07061",
    about="each generated token leaves when it is confident enough, less being asked of later ones",
    plan=plan,
    knobs=(
        Knob("decoder", 1.0, "Confidence at which a token leaves; 1 or more never. Choose it by calibration.", 0.0, 2.0),
        Knob("measure", "softmax", "how confident a token is", choices=tuple(MEASURES)),
        Knob("decay", "paper", "how the threshold falls with the step", choices=("paper", "released", "none")),
        Knob("tau", 4.0, "temperature of the decay", 0.0, 100.0),
        Knob("minimum", 1, "least depth, in layers", 1, 1000),
        Knob("keys_values", "propagate", "what becomes of keys and values of skipped layers", choices=POLICIES),
        Knob("words", "exit", "who says the words: the exit, or full depth over the keys and values of exits (an oracle)", choices=WORDS),
        Knob("batch", "compact", "'compact': each row leaves by itself; 'min': when the last is ready", choices=("compact", "min")),
        RANK,
    ),
    calibrated=("decoder",),
    presets={"oracle-cache": {"keys_values": "recompute"}, "oracle-words": {"keys_values": "propagate", "words": "full"}},
    exits=lambda shape: Exits(shape, heads=False, ready=nn.Linear(shape.width, 1)),
    objective=objective,
    frozen=True,
)
