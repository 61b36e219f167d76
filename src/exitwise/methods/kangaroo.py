"""Kangaroo: the first layers and a small trained adapter draft, the others verify; what comes out is the model's own greedy text (Liu et
al. 2024, arXiv:2404.18911).

Two exits: the drafting depth, and the stop of drafting once a drafted token's probability is below `sure` (eta; that token is verified all
the same). The adapter is one attention layer with its own keys and values in front of the model's frozen head, trained on the full
model's law (`exitwise.train.language`, `recipes/language/kangaroo.py`). It reads the states that verification needs anyway. `adapted`
makes exits of a trained adapter. Differs: `words` and `lookup` as in LayerSkip's file; an adapter may bring a short list of the
vocabulary of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import KnobError
from ..heads import Exits, Shape
from ..lm.adapter import Adapter, AdapterConfig
from ..lm.drafting import AdapterHead
from ..lm.heads import LowRank, head_of, normed
from ..lm.plan import Decoding, Draft
from ..method import Knob, Method, Settings
from ..run.walk import Plan
from .layerskip import DRAFT_KNOBS, offers

ADAPTER, WORDS, HEAD = "adapter", "words", "head"


class Words(nn.Module):
    """The short list of the vocabulary that an adapter drafts from, (words,) token ids."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("ids", torch.zeros(count, dtype=torch.long))


def exits(shape: Shape, words: int = 0, head: Sequence[int] = (), **config: Any) -> Exits:
    """An untrained adapter for states of this width. words: of a short list; head: vocabulary and rank of a `LowRank`, which takes its
    place; config: what `AdapterConfig` takes."""
    wanted = {"heads": max(1, shape.width // 64), "depth": 2, **config}
    wanted.setdefault("kv_heads", wanted["heads"])
    parts: dict[str, nn.Module] = {ADAPTER: Adapter(AdapterConfig(shape.width, **{k: v for k, v in wanted.items() if k != "width"}))}
    if words:
        parts[WORDS] = Words(words)
    if head:
        parts[HEAD] = LowRank(head[0], shape.width, head[1])
    made = Exits(shape, heads=False, **parts)
    made.about = {**wanted, "words": words, "head": list(head)}
    return made


def adapted(adapter: Adapter, layers: int, shortlist: Tensor | None = None, head: LowRank | None = None) -> Exits:
    """Exits of a trained adapter (`lm.adapter.load_adapter`), for `Engine(model, "kangaroo", exits=...)`.

    layers: of the model. What drafting reads: `head`, a fitted one, or else the words of the short list, or else the whole head.
    """
    count = 0 if shortlist is None or head is not None else len(shortlist)
    sizes = () if head is None else tuple(head.words.shape)
    out = exits(Shape(adapter.config.width, 0, layers), count, sizes, **asdict(adapter.config))
    if head is not None:
        out.parts[HEAD].load_state_dict(head.state_dict())
    out.parts[ADAPTER].load_state_dict(adapter.state_dict())
    if count and shortlist is not None:
        out.parts[WORDS].ids.copy_(shortlist)  # type: ignore[operator]
    out.made_by = "kangaroo"
    return out


def drafter(words: int, backbone: Any, parts: Mapping[str, nn.Module], rows: int) -> AdapterHead:
    """The adapter between the first layers and the head, or the part of the head that it was trained to read."""
    adapter: Any = parts[ADAPTER]
    if not 1 <= adapter.config.depth < backbone.depth:
        raise KnobError(
            f"The adapter reads states after {adapter.config.depth} layers, and {backbone.depth} are there, one of which must verify. "
            f"Allowed: 1..{backbone.depth - 1}. Train one for this model."
        )
    _, weight = normed(backbone)
    ids: Any = parts[WORDS].ids if WORDS in parts else None
    read = head_of(weight, words if words else ids)
    if HEAD in parts and not words:
        low: Any = parts[HEAD]
        read = partial(low.read, weight)
    elif ids is None and not words:
        read = backbone.counted(read)
    return AdapterHead(adapter, adapter.config.depth, read, rows)


def plan(settings: Settings, layers: Mapping[str, int]) -> Plan:
    """Draft after the adapter's depth, verify above it."""
    if "decoder" not in layers:
        raise KnobError(f"The streams are {', '.join(layers)}: this method needs a language model.")
    draft = Draft(partial(drafter, settings["words"]), settings["drafts"], settings["sure"], offers(settings["lookup"]), needs=(ADAPTER,))
    return Plan(decompose=False, policy="run late", decoding=Decoding(draft))


METHOD = Method(
    paper="arXiv:2404.18911",
    about="the first layers and a trained adapter draft, the others verify: the model's own text, sooner",
    plan=plan,
    knobs=(
        Knob("drafts", 6, "tokens drafted in a round at most (gamma)", 1, 64),
        replace(DRAFT_KNOBS[0], default=0.6),
        *DRAFT_KNOBS[1:],
    ),
    exits=exits,
)
