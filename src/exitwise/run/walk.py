"""Walking a foreign model's own layers with exits: the layers and their owner carry a subclass for a while, and are themselves
again afterwards.

The model's own forward prepares masks, positions and caches and loops over its layers as ever. While a session is attached, a layer's call
comes here: rows that stay run the real layer (so hooks, compiled calls and checkpoints of the layer fire, once for each real
call), rows that
left are not in the batch any more, and a layer that nobody visits is not called at all.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..criteria import Rule
from ..errors import AttachError, FamilyError, KnobError
from ..heads import Exits
from ..stack import Family, Stack, reach
from ..trace import Trace
from .answers import Answers, head_of, placed

if TYPE_CHECKING:
    from ..lm.plan import Decoding

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_BUSY: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Plan:
    """What a method asks of a run.

    rules: stream -> rule; a stream without one runs at full depth. decompose: streams that share a stack walk apart (no attention between
    them). policy: what becomes of keys and values of skipped layers. together: rows of a batch leave together, when the last would.
    pooled: they leave together by one measurement over the tokens of all of them, pads too, as if the batch were a single row.
    read_all: the head reads a decoder's state after every layer at which rows stay, for nothing but its cost.
    config: fields of the model's own configuration that hold while exits are attached.
    group: so many decoder rows that follow each other (the candidates of one item) leave together.
    steps: most decoding steps there can be, for schedules. ends: token ids after which a row of a greedy batch is not computed any more.
    record: measure the similarity after every layer, whatever the rules need. keep_states: a decoder's
    state of the last token after every layer is kept in `Session.states` (full depth only). place: the token of a decoder's block that
    reading rules read, None for the last. candidates: the answers to which they restrict what they read. decoding: what only the loop for
    language models can do (`exitwise.lm`); a model that carries exits in its own forward cannot. rank: exits before the last are read by
    a head of this rank (`lm.heads.LowRank`; that loop only), 0 by the whole head. shadow: an oracle, in which a decoder's tokens leave in
    their keys and values alone: every layer runs, and the model's own head answers from the last.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    decompose: bool = True
    policy: str = "propagate"
    together: bool = False
    pooled: bool = False
    read_all: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    group: int = 1
    steps: int = 20
    ends: frozenset[int] = frozenset()
    pad: int | None = None
    record: bool = False
    keep_states: bool = False
    seed: int = 0
    place: int | None = None
    candidates: tuple[int, ...] | None = None
    decoding: Decoding | None = None
    rank: int = 0
    shadow: bool = False


class Session:
    """One attachment: the plan, what the model was called with, and what happened."""

    def __init__(self, model: nn.Module, family: Family, plan: Plan, exits: Exits | None = None) -> None:
        self.model, self.family, self.plan = model, family, plan
        self.dice = torch.Generator().manual_seed(plan.seed)
        self.listened: dict[str, Any] = {}
        self.heard: dict[str, Any] = {}
        self.encoded: dict[str, list[tuple[list[int], Any, Tensor | None]]] = {}
        self.decoded: dict[str, list[list[tuple[list[int], Any, Tensor | None]]]] = {}
        self.layers: dict[str, int] = {}
        self.states: list[Tensor] = []
        self.count = Trace()
        self.answers = Answers(model, family, exits, self.head_ran)

    def head_ran(self) -> None:
        """A head was evaluated."""
        self.count.head_calls += 1

    def worked(self, stack: Stack, rows: int, tokens: int) -> None:
        """A real call of one layer took place."""
        for counter, amount in ((self.count.calls, 1), (self.count.rows, rows), (self.count.work, rows * tokens)):
            counter[stack.path] = counter.get(stack.path, 0) + amount

    @property
    def trace(self) -> Trace:
        """All that happened since the session began."""
        out = Trace(calls=dict(self.count.calls), rows=dict(self.count.rows), work=dict(self.count.work), fills=dict(self.count.fills),
                    crossed=dict(self.count.crossed), head_calls=self.count.head_calls, layers=dict(self.layers))  # fmt: skip
        parts = [Trace(depth={s: torch.tensor(d)}, tokens={s: _as_rows(t, len(d))}, sureness={} if sure is None else {s: sure})
                 for s, events in self.encoded.items() for d, t, sure in events]  # fmt: skip
        for stream, runs in self.decoded.items():
            for steps in runs:
                depth = torch.tensor([d for d, _, _ in steps]).T
                tokens = torch.stack([_as_rows(t, len(d)) for d, t, _ in steps], 1)
                sure = None if steps[0][2] is None else torch.stack([s for _, _, s in steps if s is not None], 1)
                parts.append(Trace(depth={stream: depth}, tokens={stream: tokens}, sureness={} if sure is None else {stream: sure}))
        joined = Trace.cat(parts)
        out.depth, out.tokens, out.sureness = joined.depth, joined.tokens, joined.sureness
        return out


def _as_rows(tokens: Any, rows: int) -> Tensor:
    return tokens.cpu() if isinstance(tokens, Tensor) else torch.full((rows,), int(tokens))


@cache
def parameters(kind: Any) -> tuple[str, ...]:
    """Names of a module class's forward parameters, without self."""
    return tuple(inspect.signature(inspect.unwrap(kind.forward)).parameters)[1:]


@cache
def _carrier(kind: Any) -> type:
    """A subclass of a module's class whose calls go to the handlers that the instance carries."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _handled(self, 0, args, kwargs)

    body = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "_exitwise_kind": kind}
    return type(kind.__name__, (kind,), body)


def own_class(module: nn.Module) -> Any:
    """The module's class, also while it carries ours."""
    kind: Any = type(module)
    return getattr(kind, "_exitwise_kind", kind)


@dataclass
class _Carried:
    """What a module carries: a handler for every stack that it owns or belongs to, and which of them has the call now."""

    handlers: list[Callable[..., Any]]
    at: int = 0


def _handled(module: Any, at: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call as handler number `at` sees it; after the last, the module's own call, hooks and all."""
    carried: _Carried = module.__dict__["_exitwise"]
    if at == len(carried.handlers):
        return own_class(module).__call__(module, *args, **kwargs)
    before, carried.at = carried.at, at
    try:
        return carried.handlers[at](module, args, kwargs)
    finally:
        carried.at = before


def plain_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The module's own call, although it carries ours (a module that owns two stacks is first handed to the other stack's walk)."""
    return _handled(module, module.__dict__["_exitwise"].at + 1, args, kwargs)


def _carry(module: nn.Module, handler: Callable[..., Any]) -> Callable[[], None]:
    kind: Any = type(module)
    if "_exitwise" in module.__dict__:  # a module that owns two stacks
        module.__dict__["_exitwise"].handlers.append(handler)
        return lambda: None
    module.__dict__["_exitwise"] = _Carried([handler])
    module.__class__ = _carrier(kind)

    def undo() -> None:
        module.__class__ = kind
        module.__dict__.pop("_exitwise", None)

    return undo


@contextmanager
def attached(model: nn.Module, family: Family, plan: Plan, exits: Exits | None = None) -> Iterator[Session]:
    """The model carries exits inside this block, whoever calls it; afterwards it is restored exactly, also after an exception.

    exits: trained heads and parts, where there are any. One thread at a time (others wait). Raises AttachError if this thread has attached
    the model already.
    """
    from .decode import DecoderWalk
    from .encode import EncoderWalk

    with _LOCKS.setdefault(model, threading.RLock()):
        if model in _BUSY:
            raise AttachError(f"This {type(model).__name__} carries exits already. Leave the other `attached()` block first.")
        if plan.read_all and family.readout is None:
            raise FamilyError(f"The head of a {type(model).__name__} cannot read every layer: its family has no `readout`. Give it one.")
        if plan.decoding is not None or plan.rank:
            raise AttachError(
                "These settings are for language models alone: they decode in a loop of their own, which nobody else can call. "
                "Use `Engine.generate` with a language model."
            )
        session, undo = Session(model, family, plan, exits), []
        classifier = None if exits is None else placed(model, family, exits)
        _BUSY.add(model)
        try:
            undo.append(_configured(model, plan.config))
            undo.append(model.register_forward_pre_hook(_listener(session), with_kwargs=True).remove)
            head = head_of(model, family)
            if head is not None:
                undo.append(head.register_forward_hook(lambda *_: session.head_ran()).remove)
            if classifier is not None:
                undo.append(classifier.register_forward_hook(session.answers.put).remove)
            for stack in family.stacks_of(model):
                for path in stack.listen:
                    undo.append(reach(model, path).register_forward_pre_hook(_eavesdropper(session, path)).remove)
                walk = (DecoderWalk if stack.kind == "decoder" else EncoderWalk)(session, stack)
                undo.append(_carry(stack.owner_module(model), walk.owner_call))
                for layer, places in _places(stack.layers(model)):
                    undo.append(_carry(layer, walk.layer_handler(places)))
            yield session
        finally:
            for step in reversed(undo):
                step()
            _BUSY.discard(model)


def _configured(model: nn.Module, wanted: Mapping[str, Any]) -> Callable[[], None]:
    """The model's configuration with these fields; the undoing of it. Raises KnobError for a field that the model does not have."""
    config = getattr(model, "config", None)
    for name in wanted:
        if not hasattr(config, name):
            raise KnobError(
                f"{type(model).__name__} has no setting {name!r}, which this run would change. Leave the knob of that name at its default."
            )
    before = {name: getattr(config, name) for name in wanted}

    def put(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(config, name, value)

    put(wanted)
    return lambda: put(before)


def _listener(session: Session) -> Callable[..., None]:
    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        session.listened = {**dict(zip(parameters(own_class(module)), args, strict=False)), **kwargs}

    return listen


def _eavesdropper(session: Session, path: str) -> Callable[..., None]:
    def hear(module: nn.Module, args: tuple[Any, ...]) -> None:
        session.heard[path] = args

    return hear


def _places(layers: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, list[int]]]:
    """Each module once, with the places (from 0) at which it runs."""
    for layer in dict.fromkeys(layers):
        yield layer, [place for place, other in enumerate(layers) if other is layer]


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    return {**dict(zip(parameters(own_class(module)), args, strict=False)), **kwargs}


def pick(value: Any, rows: Tensor | None, of: int) -> Any:
    """The rows of an argument, if its first dimension is the rows'; tuples part by part; an object of a model's own by `pick_rows`."""
    if rows is None:
        return value
    if isinstance(value, tuple):
        return tuple(pick(v, rows, of) for v in value)
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == of and of > 1:
        return value.index_select(0, rows)
    return value.pick_rows(rows) if hasattr(value, "pick_rows") else value


def split_output(out: Any) -> tuple[Tensor, tuple[Any, ...] | None]:
    """(state, what else a layer returned) for layers that return a tensor or a tuple."""
    return (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
