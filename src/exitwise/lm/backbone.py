"""A language model as embedding, layers and head, entered by its family's `Language`: the only place where a layer is run."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CacheError, FamilyError
from ..few import MOST, Kernel, kernel
from ..run.cache import CrossLayer, Filled
from ..run.walk import split_output
from ..stack import Family, reach
from ..trace import Trace
from .lean import Lean, filled_up, lean_of, norm_of, plain, rotary
from .source import Both, Source
from .store import Span, Store

_AGREE: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
ATTENTIONS = ("sdpa", "eager")  # those that take our masks
CLOSE = 1e-4  # the same arithmetic in another order, in float32, on states of order one


def attention_of(model: Any) -> str:
    """The name of a model's attention, as `transformers` has it."""
    return str(getattr(model.config, "_attn_implementation", ATTENTIONS[0]))


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether these are the same numbers in another order of arithmetic; never where some are no numbers."""
    size = float(theirs.abs().amax())
    return math.isfinite(size) and torch.allclose(ours, theirs, rtol=CLOSE, atol=CLOSE * size)


class _Visit:
    """What a layer of the model takes for its cache while it is run: it stores what the layer brings and gives back what it may see."""

    def __init__(self, store: Store, span: Span, filling: bool = False) -> None:
        self.store, self.span, self.filling = store, span, filling

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.store.write(self.span, keys, values)
        if self.filling:
            raise Filled
        return self.store.read(self.span)

    def get_seq_length(self, layer: int = 0) -> int:
        return self.span.starts[0]

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.span.end, 0


class Backbone:
    """The parts of one model. lean: run layers in few operations where that gives what they give. source: what the encoder gave, for a
    decoder that has one.

    Raises FamilyError for a model whose family has no `language`, and CacheError for attention that cannot take our masks.
    """

    def __init__(self, model: nn.Module, family: Family, lean: bool = True, source: Source | None = None) -> None:
        if family.language is None:
            raise FamilyError(f"{type(model).__name__} is not described as a language model: its family has no `language`. Use the walk.")
        self.model, self.family, self.language = model, family, family.language
        (self.stack,) = (stack for stack in family.stacks_of(model) if stack.kind == "decoder")
        self.source = source
        self.layers = self.stack.layers(model)
        kind = attention_of(model)
        if kind not in ATTENTIONS:
            raise CacheError(f"Attention {kind!r} cannot see rows of unlike length. Load the model with attn_implementation='sdpa'.")
        self.trace = Trace(layers={self.stack.streams[0]: len(self.layers)})
        self._takes = [set(inspect.signature(inspect.unwrap(type(layer).forward)).parameters) for layer in self.layers]
        self.leans: list[Lean | None] = [None] * len(self.layers)
        if lean:
            self.leans = [self._checked(i) for i in range(len(self.layers))]
        self._quick = self._quick_head() if lean else None

    @property
    def depth(self) -> int:
        """Layers of the whole model."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(rows, tokens, width)."""
        return self.language.embed(self.model, ids, positions)

    def aids(self, states: Tensor, span: Span) -> Callable[[int], dict[str, Any]]:
        """What all layers of a pass share; made once."""
        made = self.language.aids(self.model, states, span.positions)
        if self.source is not None:
            return self._hearing(made, self.source, span)
        ready: dict[int, tuple[Any, dict[str, Any]]] = {}  # by the tables' identity, which is theirs as long as they are held here

        def of(layer: int) -> dict[str, Any]:
            call = made(layer)
            turned = call.get("position_embeddings")
            if not isinstance(turned, tuple):
                return call
            if id(turned) not in ready:
                ready[id(turned)] = turned, {**call, "rotary": rotary(*turned)}
            return ready[id(turned)][1]

        return of

    def _hearing(self, made: Callable[[int], dict[str, Any]], source: Source, span: Span) -> Callable[[int], dict[str, Any]]:
        """The same, with what layers take of the encoder's output."""
        cross = self.language.cross
        assert cross is not None
        if cross.aids is not None:
            heard = cross.aids(self.model, source, span.positions, span.index)
            return lambda layer: {**made(layer), **heard(layer)}
        more = source.aids(span.index)
        return lambda layer: {**made(layer), **more}

    def window(self, layer: int) -> int | None:
        """How many tokens back a layer looks."""
        return None if self.language.window is None else self.language.window(self.model, layer)

    def readout(self, states: Tensor) -> Tensor:
        """(..., vocabulary) logits of states (rows, tokens, width), by the model's own norm and head."""
        assert self.family.readout is not None
        self.trace.head_calls += 1
        rows, tokens, width = states.shape
        flat = states.reshape(-1, width)
        if self._quick is not None and flat.shape[0] <= MOST:
            return self._quick(flat).view(rows, tokens, -1)
        flat = filled_up(flat)
        if len(flat) == rows * tokens:
            return self.family.readout(self.model, states)
        return self.family.readout(self.model, flat[:, None])[: rows * tokens].view(rows, tokens, -1)

    def head(self) -> tuple[nn.Module, nn.Linear] | None:
        """(the final norm, the head), by reference; None where the read-out is not, as far as its family tells, a norm and one matrix."""
        model: Any = self.model
        found = model.get_output_embeddings()
        norm = None if self.language.norm is None else reach(model, self.language.norm)
        if norm is None or found is None or getattr(found, "bias", None) is not None or found.weight.shape[1] != norm.weight.shape[-1]:
            return None
        return norm, found

    def _quick_head(self) -> Callable[[Tensor], Tensor] | None:
        """The read-out of few flat states by the kernel, if that is what the family's gives."""
        parts, ours = self.head(), kernel()
        if ours is None or parts is None or not all(plain(part) for part in parts) or not Kernel.takes(parts[1].weight):
            return None
        norm, weight = norm_of(parts[0]) or parts[0], parts[1].weight.detach()

        def read(states: Tensor) -> Tensor:
            return ours(norm(states), weight)

        if parts[1] not in _AGREE:
            _AGREE[parts[1]] = self._reads(read)
        return read if _AGREE[parts[1]] else None

    @torch.no_grad()
    def _reads(self, read: Callable[[Tensor], Tensor]) -> bool:
        """Whether this is the family's read-out: of two states of unlike size, so that a cap on logits shows."""
        assert self.family.readout is not None
        model: Any = self.model
        width = model.get_output_embeddings().weight.shape[1]
        states = torch.randn(2, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [30.0]])
        want = self.family.readout(self.model, states[:, None])[:, 0]
        return _alike(read(states), want)

    def counted(self, head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A head that reads the whole vocabulary beside `readout`: its calls are calls of the head too."""

        def read(states: Tensor) -> Tensor:
            self.trace.head_calls += 1
            return head(states)

        return read

    def run(self, layer: int, states: Tensor, span: Span, store: Store, aids: dict[str, Any], mask: Tensor | None) -> Tensor:
        """States (rows, tokens, width) through one layer."""
        self.count(states)
        ours = self.leans[layer]
        if ours is not None:
            return ours(states, span, store, aids, mask, self.window(layer))
        return self._own(layer, states, _Visit(store, span), aids, mask)

    def masked(self, layer: int, span: Span) -> bool:
        """Whether `run` takes a mask for this span."""
        ours = self.leans[layer]
        return ours is None or not ours.unmasked(span)

    def fill(self, layer: int, states: Tensor, span: Span, store: Store, aids: dict[str, Any]) -> None:
        """Only the keys and values of these states."""
        path = self.stack.path
        self.trace.fills[path] = self.trace.fills.get(path, 0) + states.shape[0] * states.shape[1]
        ours = self.leans[layer]
        if ours is not None:
            return ours.fill(states, span, store, aids)
        try:
            self._own(layer, states, _Visit(store, span, filling=True), aids, None)
        except Filled:
            return
        raise FamilyError(f"{type(self.layers[layer]).__name__} stored no keys and values. Use keys_values='run late' for this model.")

    def _own(self, layer: int, states: Tensor, cache: Any, aids: dict[str, Any], mask: Tensor | None) -> Tensor:
        call = {"attention_mask": mask, self.stack.cache: cache, "use_cache": True, **aids}
        known = {name: value for name, value in call.items() if name in self._takes[layer] or name in aids and name != "rotary"}
        if self.source is not None and not cache.filling:
            known[self.stack.cache] = Both(cache, layer, self._crossed(layer, self.source, cache.span))
        return split_output(self.layers[layer](states, **known))[0]

    def _crossed(self, layer: int, source: Source, span: Span) -> CrossLayer:
        """The encoder's keys and values at a layer for the rows of a span; for those that never came here they are made now."""
        missing = source.missing(layer, span)
        if missing:
            assert self.language.cross is not None
            states, counted = source.of(missing), self.trace.crossed
            source.put(layer, missing, self.language.cross.keys(self.model, layer, states))
            counted[self.stack.path] = counted.get(self.stack.path, 0) + states.shape[0] * states.shape[1]
        return source.visit(layer, span)

    def count(self, states: Tensor) -> None:
        """A call of one layer takes place."""
        path, trace = self.stack.path, self.trace
        trace.calls[path] = trace.calls.get(path, 0) + 1
        trace.rows[path] = trace.rows.get(path, 0) + states.shape[0]
        trace.work[path] = trace.work.get(path, 0) + states.shape[0] * states.shape[1]

    def _checked(self, layer: int) -> Lean | None:
        """Our arithmetic for a layer, if it has the form and gives what the layer gives; that is tried once for each layer."""
        module = self.layers[layer]
        found = lean_of(module)
        if found is None:
            return None
        if module not in _AGREE:
            _AGREE[module] = self._agrees(layer, found)
        return found if _AGREE[module] else None

    @torch.no_grad()
    def _agrees(self, layer: int, ours: Lean) -> bool:
        """Whether our arithmetic gives what the layer itself gives: three tokens, then one more that sees them."""
        weight = ours.q.turned
        generator = torch.Generator().manual_seed(layer)
        states = torch.randn(1, 4, ours.q.turned.shape[0], generator=generator).to(weight)
        both: list[Tensor] = []
        for run in (ours, lambda *a: self._own(layer, a[0], _Visit(a[2], a[1]), a[3], a[4])):
            store, outs = Store(1), []
            for start, stop in ((0, 3), (3, 4)):
                span = Span(None, (start,), stop - start, weight.device)
                part = states[:, start:stop]
                try:
                    aids, window = self.aids(part, span)(layer), self.window(layer)
                    outs.append(run(part, span, store, aids, span.mask(part.dtype, window), window))
                except (RuntimeError, KeyError, TypeError, ValueError):
                    return False  # not of this form after all
            both.append(torch.cat(outs, 1))
        return _alike(*both)
