"""Decoders with exits: every token leaves when it is ready, every row at its own depth; skipped layers' keys and values follow a
named policy.

'propagate': keys and values of a skipped layer are projected from the state in which the token left, in one go, when a row next visits that
layer. 'run late': the kept states first run through that layer themselves: exact. 'recompute': all tokens since the last that
every layer has
seen run again: exact, and holds no states. In all three a layer that nobody visits costs nothing. 'holes': nothing is made good, as in
MuE's released code. A layer attends to the tokens that it has seen, with biases and masks taken from the right, so that keys before a hole
are read at wrong distances: it is there to show what that costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from ..errors import CacheError, FamilyError
from ..stack import Stack
from .cache import Filled, Frontier, adopt, frontier_of, rows_tensor
from .encode import Walker
from .walk import Session, named, pick, plain_call, split_output

HISTORY = ("input_ids", "inputs_embeds", "position_ids")
CACHE = "past_key_values"


class DecoderWalk:
    """One stack of a decoder, while a session is attached."""

    def __init__(self, session: Session, stack: Stack) -> None:
        self.session, self.stack = session, stack
        self.layers = len(stack.layers(session.model))
        self.frontier: Frontier | None = None
        self.given: dict[str, Any] = {}
        self.new: int | None = None
        self.walker: Walker | None = None
        self.extras: tuple[Any, ...] | None = None
        self.last: tuple[int, int, int] = (0, 0, 0)

    # -- the owner: which tokens the model is asked for -------------------------------------------------------------------------

    def owner_call(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = named(owner, args, kwargs)
        self.given, self.new = call, None
        frontier = frontier_of(call.get(CACHE))
        try:
            if frontier is not None:
                call = self._block(frontier, call)
            out = plain_call(owner, (), call)
            frontier = self.frontier
            if frontier is not None:
                self._remember(frontier)
            return self._newest(out)
        finally:
            if frontier is not None:
                for layer in frontier.layers:
                    layer.leave()
            self.given, self.walker, self.extras, self.frontier = {}, None, None, None

    def _block(self, frontier: Frontier, call: dict[str, Any]) -> dict[str, Any]:
        """The call for all tokens since `base`: only the new ones, or as many more as the policy wants to run again or late."""
        new = next(call[n].shape[1] for n in HISTORY if isinstance(call.get(n), Tensor) and call[n].dim() > 1)
        self.new = new
        if frontier.policy == "recompute":
            frontier.forget()
        frontier.base = min(frontier.full_prefix, frontier.tokens) if frontier.late else frontier.tokens
        if self.stack.fresh_bias:
            for layer in frontier.layers[:1]:
                layer.length = [min(n, frontier.base) for n in layer.length]
        if frontier.base == frontier.tokens:
            return call
        out = dict(call)
        for name in HISTORY:
            if isinstance(call.get(name), Tensor) and name in frontier.given:
                past = frontier.given[name][:, frontier.base : frontier.tokens]
                out[name] = torch.cat([past, call[name]], 1)
        return out

    def _remember(self, frontier: Frontier) -> None:
        for name in HISTORY:
            new = self.given.get(name)
            if isinstance(new, Tensor) and new.dim() > 1 and frontier.late:
                past = frontier.given.get(name)
                frontier.given[name] = new if past is None else torch.cat([past, new], 1)

    def _newest(self, out: Any) -> Any:
        """Only the new tokens' states, as the caller expects."""
        if self.new is None or not hasattr(out, "last_hidden_state") or out.last_hidden_state.shape[1] == self.new:
            return out
        out.last_hidden_state = out.last_hidden_state[:, -self.new :]
        return out

    # -- the layers -------------------------------------------------------------------------------------------------------------

    def layer_handler(self, places: list[int]) -> Callable[..., Any]:
        if len(places) > 1:
            raise FamilyError(
                f"A layer of {self.stack.path} runs {len(places)} times: a decoder's layer has keys and values for one run only."
            )
        (index,) = places

        def handle(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._layer(index, layer, named(layer, args, kwargs))

        return handle

    def _layer(self, index: int, layer: nn.Module, call: dict[str, Any]) -> Any:
        hidden = call.pop(next(iter(call)))
        if index == 0:
            self._begin(hidden, call)
        walker = self.walker
        assert walker is not None and self.new is not None
        if self.frontier is not None and self.frontier.policy == "propagate":
            self.frontier.places.note(index, call, self.frontier.tokens, self.new)
        if walker.rows:
            after = (
                self._all_rows(layer, hidden, call) if self.frontier is None else self._groups(index, layer, hidden, call, self.frontier)
            )
            if self.session.plan.keep_states:
                self.session.states.append(after[:, -1])
            walker.advance(index + 1, after)
            if self.session.plan.read_all:
                self._read(walker, index, after)
        state = hidden
        if index == self.layers - 1:
            state = self._finish(walker, hidden)
        return state if self.extras is None else (state, *self.extras)

    def _read(self, walker: Walker, index: int, after: Tensor) -> None:
        """The head on the rows that do not leave early here; nothing is done with what it says."""
        readout, last = self.session.family.readout, index == self.layers - 1
        assert readout is not None  # `attached` has looked
        if walker.rows or last:
            readout(self.session.model, after if last else walker.state)

    def _begin(self, hidden: Tensor, call: dict[str, Any]) -> None:
        rows, block = hidden.shape[:2]
        held = call.get(self.stack.cache)
        self.frontier = None
        if held is not None:
            self.frontier = frontier_of(held) or adopt(held, self.layers, rows, self.session.plan.policy)
            if len(self.frontier.done) != rows:
                raise CacheError(f"The cache holds {len(self.frontier.done)} rows and {rows} came. Start a new cache for another batch.")
        new = block if self.new is None or held is None else self.new
        self.new, plan = new, self.session.plan
        step = self._step(rows, block) if self.frontier is None else self.frontier.step
        live = list(range(rows)) if self.frontier is None else self._live(self.frontier, new)
        rule = plan.rules.get(self.stack.streams[0])
        state = hidden[:, -new:] if block > new else hidden
        walker = Walker(self.session, self.stack, rule, list(range(rows)), state, self._mask(new), self.layers, rows, step, plan.group)
        if len(live) < rows:
            walker.rows, walker.result = live, torch.zeros_like(state)
            walker.state = state.index_select(0, torch.tensor(live, device=state.device))
        self.walker = walker

    def _step(self, rows: int, block: int) -> int:
        """Without a cache: one token more for as many rows as in the last call is the next step of its run; anything else is a new run."""
        before, tokens, step = self.last
        step = step + 1 if (rows, block) == (before, tokens + 1) else 0
        self.last = rows, block, step
        return step

    def _live(self, frontier: Frontier, new: int) -> list[int]:
        """Rows that go on: not those whose last token was an end (the caller has no use for what comes after it)."""
        ids = self.given.get("input_ids")
        if self.session.plan.ends and frontier.step > 0 and new == 1 and isinstance(ids, Tensor):
            last = ids[:, -1].tolist()
            ends, pad = self.session.plan.ends, self.session.plan.pad
            frontier.done = [d and t == pad or t in ends for d, t in zip(frontier.done, last, strict=True)]
        return [row for row, done in enumerate(frontier.done) if not done]

    def _mask(self, new: int) -> Tensor | None:
        mask = self.given.get(self.stack.token_mask)
        if new == 1 or not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < new:
            return None
        return mask[:, -new:]

    def _all_rows(self, layer: nn.Module, hidden: Tensor, call: dict[str, Any]) -> Tensor:
        """Without a cache: the rows that stay, with all their tokens."""
        walker = self.walker
        assert walker is not None
        rows = walker.index
        cut = {n: self._rows_of(n, v, rows, walker.of) for n, v in call.items()}
        after, extras = split_output(plain_call(layer, (walker.state,), cut))
        self._note(extras, len(walker.rows), after.shape[1])
        self._crossing(call, len(walker.rows))
        return after

    def _rows_of(self, name: str, value: Any, rows: Tensor | None, of: int) -> Any:
        if name in self.stack.shared:
            return value
        if (
            rows is not None
            and name in self.stack.cross
            and isinstance(value, Tensor)
            and 0 < value.shape[0] < of
            and of % value.shape[0] == 0
            and value.shape[0] > 1
        ):
            value = value.repeat_interleave(of // value.shape[0], 0)
        return pick(value, rows, of)

    def _note(self, extras: tuple[Any, ...] | None, rows: int, tokens: int) -> None:
        if self.extras is None or not self.stack.fresh_bias:  # the first layer's bias holds for all: a deeper group's is cut to its queries
            self.extras = extras if extras is not None else self.extras
        self.session.worked(self.stack, rows, tokens)

    def _crossing(self, call: dict[str, Any], rows: int) -> None:
        source = call.get(self.stack.cross[0]) if self.stack.cross else None
        if isinstance(source, Tensor):
            crossed = self.session.count.crossed
            crossed[self.stack.path] = crossed.get(self.stack.path, 0) + rows * source.shape[1]

    def _groups(self, index: int, layer: nn.Module, hidden: Tensor, call: dict[str, Any], frontier: Frontier) -> Tensor:
        """With a cache: rows that have seen equally many tokens here run together, after what they missed was made good."""
        walker, own = self.walker, frontier.layers[index]
        assert walker is not None
        cross = frontier.cross[index] if isinstance(call[self.stack.cache], EncoderDecoderCache) else None
        groups: dict[tuple[int, bool], list[int]] = {}
        for place, row in enumerate(walker.rows):
            groups.setdefault((own.length[row], cross is not None and cross.have[row]), []).append(place)
        whole = len(groups) == 1
        outs: list[tuple[list[int], Tensor]] = []
        for (seen, _), places in groups.items():
            rows = [walker.rows[p] for p in places]
            states = walker.state if whole else walker.state.index_select(0, torch.tensor(places, device=hidden.device))
            outs.append((places, self._visit(index, layer, hidden, call, frontier, rows, seen, states)))
        if whole:
            return outs[0][1]
        after = torch.empty_like(walker.state)
        for places, out in outs:
            after[torch.tensor(places, device=hidden.device)] = out
        return after

    def _visit(
        self,
        index: int,
        layer: nn.Module,
        hidden: Tensor,
        call: dict[str, Any],
        frontier: Frontier,
        rows: list[int],
        seen: int,
        states: Tensor,
    ) -> Tensor:
        """These rows run this layer; `seen` tokens of theirs are here already. (rows, new tokens, width)."""
        assert self.new is not None
        here, own, held = rows_tensor(rows, len(frontier.done), hidden.device), frontier.layers[index], call[self.stack.cache]
        if frontier.policy == "propagate" and seen < frontier.tokens:
            self._fill(layer, call, frontier, index, here, seen)
            seen = frontier.tokens
        late = frontier.tokens - seen if frontier.late else 0
        of, end = frontier.tokens + self.new, seen + late + self.new
        if late:
            first = index == 0
            earlier = (
                pick(hidden, here, len(frontier.done))[:, seen - frontier.base :][:, :late]
                if first
                else frontier.states(here, seen, frontier.tokens)
            )
            states = torch.cat([earlier, states], 1)
        self._enter(frontier, index, here, seen, held)
        cut = self._cut(call, here, len(frontier.done), of - frontier.base, end - seen, held, index)
        if end < of:
            cut = {n: v if n in self.stack.cross else _last_keys(v, of, end) for n, v in cut.items()}
        if self._cross_missing(held, index):
            self._crossing(call, len(rows))
        after, extras = split_output(plain_call(layer, (states,), cut))
        own.leave()
        frontier.cross[index].leave()
        for row in rows:
            own.length[row] = end
        self._note(extras, len(rows), after.shape[1])
        if late:
            if not (index == 0 and self.stack.fresh_bias and frontier.policy == "run late"):  # ran only for its bias: they are further on
                frontier.keep(here, seen, after[:, :late])
            after = after[:, late:]
        return after

    def _enter(self, frontier: Frontier, index: int, rows: Tensor | None, start: int, held: Any, filling: bool = False) -> None:
        frontier.layers[index].visit(rows, start, filling)
        if isinstance(held, EncoderDecoderCache):
            held.is_updated[index] = frontier.cross[index].visit(rows)

    @staticmethod
    def _cross_missing(held: Any, index: int) -> bool:
        return isinstance(held, EncoderDecoderCache) and not held.is_updated[index]

    def _fill(self, layer: nn.Module, call: dict[str, Any], frontier: Frontier, index: int, rows: Tensor | None, seen: int) -> None:
        """Project keys and values of tokens seen..now from the states in which they left; the layer stops once they are stored."""
        places = frontier.places.of(index, call, rows, seen, frontier.tokens)
        if (
            call.get("position_embeddings") is not None and "position_embeddings" not in places
        ):  # those of the new token would turn the older keys wrongly
            raise FamilyError(
                f"{type(layer).__name__} turns its keys by tables that have another shape than (rows, tokens, width). "
                "Use keys_values='run late' or 'recompute' for this model."
            )
        missing = frontier.states(rows, seen, frontier.tokens)
        self._enter(frontier, index, rows, seen, call[self.stack.cache], filling=True)
        cut = {n: (None if isinstance(v, Tensor) and n not in self.stack.cross else v) for n, v in call.items()} | places
        try:
            plain_call(layer, (missing,), cut)
        except Filled:
            fills = self.session.count.fills
            fills[self.stack.path] = fills.get(self.stack.path, 0) + missing.shape[0] * missing.shape[1]
        else:
            raise FamilyError(f"{type(layer).__name__} stored no keys and values when asked to. Use policy='recompute' for this model.")

    def _cut(self, call: dict[str, Any], rows: Tensor | None, of: int, block: int, queries: int, held: Any, index: int) -> dict[str, Any]:
        filled = isinstance(held, EncoderDecoderCache) and held.is_updated[index]
        out = {}
        for name, value in call.items():
            if name == self.stack.cross[0] and filled:
                out[name] = value  # not read: keys and values are there
                continue
            value = self._rows_of(name, value, rows, of)
            if queries < block and name == self.stack.token_mask and value is None:
                value = _causal(block, block, call_device(call))
            if queries < block and name.startswith("position_") and block > 1:  # rotary tables and ids, (rows or 1, tokens, ...)
                out[name] = _last_positions(value, block, queries)
            else:
                out[name] = _last_queries(value, block, queries) if queries < block else value
        return out

    def _finish(self, walker: Walker, hidden: Tensor) -> Tensor:
        if walker.result is None:
            raise FamilyError(f"The rows never left {self.stack.path}: its owner did not call all {self.layers} layers.")
        frontier, result = self.frontier, walker.result
        stream = self.stack.streams[0]
        runs = self.session.decoded.setdefault(stream, [])
        if (self.last[2] if frontier is None else frontier.step) == 0:
            runs.append([])
        tokens: Any = result.shape[1] if walker.mask is None else walker.mask.sum(1)
        runs[-1].append((walker.depth, tokens, walker.sure))
        self.session.layers[stream] = self.layers
        if frontier is None:
            return result
        frontier.keep(None, frontier.tokens, result if walker.left is None else walker.left)
        if walker.left is not None:
            self._forget_shadow(frontier, walker.depth)
        frontier.tokens += result.shape[1]
        frontier.base, frontier.step = frontier.tokens, frontier.step + 1
        if hidden.shape[1] > result.shape[1]:
            result = torch.cat([result.new_zeros((result.shape[0], hidden.shape[1] - result.shape[1], result.shape[2])), result], 1)
        return result

    @staticmethod
    def _forget_shadow(frontier: Frontier, depth: list[int]) -> None:
        """Layers beyond the depth at which a row would have left have not seen its new tokens: the policy makes them good from the states
        that left, when the row comes again."""
        for row, layers in enumerate(depth):
            for layer in frontier.layers[layers:] if layers else ():
                layer.length[row] = min(layer.length[row], frontier.tokens)


def call_device(call: dict[str, Any]) -> torch.device:
    """The device of a call's tensors."""
    return next((v.device for v in call.values() if isinstance(v, Tensor)), torch.device("cpu"))


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """(1, 1, queries, keys), true where a query may look, aligned at the end."""
    place = torch.arange(keys, device=device)
    return (place[None, :] <= place[keys - queries :, None])[None, None]


def _last_positions(value: Any, block: int, queries: int) -> Any:
    """The last queries' part of rotary tables or of position ids; of a bias (4 dimensions), its last queries' rows."""
    if isinstance(value, tuple):
        return tuple(_last_positions(v, block, queries) for v in value)
    if isinstance(value, Tensor) and value.dim() in (2, 3) and value.shape[1] == block:
        return value[:, -queries:]
    return _last_queries(value, block, queries)


def _last_keys(value: Any, of: int, keys: int) -> Any:
    """The last keys' columns of a mask or a bias (rows, heads, queries, of); anything else as it is."""
    return value[..., of - keys :] if isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == of else value


def _last_queries(value: Any, block: int, queries: int) -> Any:
    """The last queries' part of a mask, a bias or positions that were made for the whole block."""
    if isinstance(value, tuple):
        return tuple(_last_queries(v, block, queries) for v in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 4 and value.shape[-2] == block:
        return value[..., -queries:, :]
    return value
