"""`generate` for language models: the caller's arguments in, sequences, depths and the trace of what ran out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..heads import Exits
from ..run.walk import Plan, Session
from ..stack import Family
from ..trace import Trace
from .asked import TAKEN, Asked, asked_of
from .backbone import Backbone
from .heads import low_rank
from .loop import Loop, Written
from .plan import Decoding
from .source import Source


@dataclass(frozen=True)
class Generated:
    """sequences: (rows, length) prompts as they were given, then the new tokens, pads after an end. depth: (rows, new tokens) layers of
    each; 0 for pads; None where several runs made a sequence. written: rounds of drafts and what became of them."""

    sequences: Tensor
    depth: Tensor | None
    trace: Trace
    written: Written


def able(model: Any, plan: Plan, given: Mapping[str, Any]) -> bool:
    """Whether the loop can do what is asked: no beams, scores or cache, and nothing that only the model's own `generate` knows, unless
    the method can do nothing else."""
    config = given.get("generation_config") or getattr(model, "generation_config", None)
    beams = given.get("num_beams") or getattr(config, "num_beams", None) or 1
    asks = given.get("past_key_values") is not None or given.get("output_scores")
    foreign = plan.decoding is None and not plan.rank and any(name not in TAKEN for name in given)
    return not asks and not foreign and beams == 1


def generate(model: nn.Module, family: Family, plan: Plan, exits: Exits | None, given: Mapping[str, Any], lean: bool = True) -> Generated:
    """Decode these prompts as the plan says. An interrupt returns what was written by then (`written.stopped`); the model is never changed.

    given: arguments of `generate` (`asked_of` lists those that are taken). lean: see `Backbone`. Raises InputError, KnobError and
    FamilyError for what cannot be done.
    """
    asked = asked_of(model, given)
    ids, streamer = given["input_ids"], given.get("streamer")
    loop = begin(model, family, plan, exits, asked, lean)
    backbone = loop.backbone
    if streamer is not None:
        streamer.put(ids.cpu())  # the prompt comes first, as in `generate`
    written = loop.run()
    if streamer is not None:
        streamer.end()
    trace = traced(loop)
    sequences = torch.cat([ids, padded(written.tokens, asked.pad).to(ids)], 1)
    return Generated(sequences, trace.depth[backbone.stack.streams[0]], trace, written)


def traced(loop: Loop) -> Trace:
    """What a loop that is done has run."""
    trace, stream = loop.backbone.trace, loop.backbone.stack.streams[0]
    depth = padded(loop.written.depths, 0)
    trace.head_calls += loop.session.count.head_calls
    trace.depth, trace.tokens = {stream: depth}, {stream: (depth > 0).long()}
    return trace


def begin(
    model: nn.Module, family: Family, plan: Plan, exits: Exits | None, asked: Asked, lean: bool = True, source: Source | None = None
) -> Loop:
    """The loop that will write what is asked, with a read-out that is counted and, where the plan wants it, one of low rank for exits."""
    backbone = Backbone(model, family, lean, source)
    if source is None:
        plan = replace(plan, steps=asked.most)
    session = Session(model, replace(family, readout=lambda _, states: backbone.readout(states)), plan, exits)
    if plan.rank:
        session.answers.cheaply = low_rank(backbone, plan.rank)
    return Loop(backbone, session, plan.decoding or Decoding(), asked)


def padded(rows: list[list[int]], pad: int) -> Tensor:
    """(rows, longest)."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
