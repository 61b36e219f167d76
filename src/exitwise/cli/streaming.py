"""A language model's text as it comes: each new piece with the depth that it needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine import Engine
from ..lm.asked import asked_of
from ..lm.generate import begin
from ..lm.loop import Written
from ..trace import Trace

CUT = "\ufffd"  # stands where the bytes of a letter have not all come


@dataclass(frozen=True)
class Piece:
    """One token. text: what it added, nothing while a letter lacks bytes. depth: of a draft that stood, the layers that drafted it."""

    text: str
    depth: int
    drafted: bool


@dataclass
class Streamed:
    """All that was said of one prompt. seconds: from the prompt to the end. written.stopped: the interrupt that ended it."""

    layers: int
    pieces: list[Piece] = field(default_factory=list)
    seconds: float = 0.0
    trace: Trace = field(default_factory=Trace)
    written: Written = field(default_factory=lambda: Written([[]], [[]]))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def mean_depth(self) -> float:
        """Of the layers that a token needed first."""
        return sum(piece.depth for piece in self.pieces) / max(1, len(self.pieces))


def stream(engine: Engine, decode: Callable[[Sequence[int]], str], inputs: Mapping[str, Any], tell: Callable[[Piece], None]) -> Streamed:
    """One prompt through the loop, each token told as soon as it stands.

    decode: token ids -> text. inputs: arguments of `generate`, one row. An interrupt ends the text early and is in what is returned.
    """
    plan = engine.plan()
    plan = replace(plan, record=False, seed=plan.seed * 1_000_003)  # as a new engine draws
    asked = asked_of(engine.model, inputs)
    loop = begin(engine.model, engine.family, plan, engine.exits, asked)
    out, words = Streamed(loop.backbone.depth, trace=loop.backbone.trace, written=loop.written), _Words(decode)

    def told(row: int, tokens: list[int]) -> None:
        depths = loop.written.depths[row][-len(tokens) :]
        stood = loop.written.per_round[-1] if loop.written.per_round else 0
        for i, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
            drafted = loop.drafter is not None and i < stood
            shallow = loop.drafter.depth if loop.drafter is not None and drafted else depth
            out.pieces.append(Piece(words(token), shallow, drafted))
            tell(out.pieces[-1])

    asked.told = told
    start = time.perf_counter()
    loop.run()
    out.seconds = time.perf_counter() - start
    out.trace.head_calls += loop.session.count.head_calls
    return out


class _Words:
    """Token ids to text, one by one: what each adds to the text of all."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode, self.ids, self.said = decode, list[int](), ""

    def __call__(self, token: int) -> str:
        self.ids.append(token)
        whole = self.decode(self.ids)
        if whole.endswith(CUT):
            return ""
        new, self.said = whole[len(self.said) :], whole
        return new
