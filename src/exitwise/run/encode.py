"""Encoders with exits: each stream's rows walk the layers until they are ready; rows that left are not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import Fixed, Rule, Step, last_real
from ..errors import FamilyError
from ..heads import Mean, Place, Said, state_at
from ..reading import Hindsight, Reading, View, enough
from ..stack import Stack
from .cache import rows_tensor
from .walk import Session, named, pick, plain_call, split_output


class Walker:
    """The rows of one stream on their way through one stack."""

    def __init__(
        self,
        session: Session,
        stack: Stack,
        rule: Rule | None,
        rows: list[int],
        state: Tensor,
        mask: Tensor | None,
        layers: int,
        of: int,
        step: int = 0,
        group: int = 1,
    ) -> None:
        self.session, self.stack, self.of, self.rows, self.state, self.mask = session, stack, of, rows, state, mask
        self.group = of if session.plan.together or session.plan.pooled else group
        self.rule = rule if rule is not None else Fixed(layers)
        self.depth = [0] * of
        self.result: Tensor | None = None
        self.left: Tensor | None = None  # of a plan with a shadow: the states in which rows would have left
        self.at = Step(0, layers, step, session.plan.steps, state.shape[1])
        self.foretold = self.rule.depths(of, layers, step, session.dice)
        if self.foretold is not None and self.group > 1:
            self.foretold = [max(self.foretold[r - r % self.group : r - r % self.group + self.group]) for r in range(of)]
        self.sure = torch.full((of, layers), float("nan")) if session.plan.record else None
        self.memory: dict[str, Tensor] = {}
        self.view: View | None = None
        self.seen: list[tuple[Tensor, Said]] = []
        session.answers.begin(of)

    @property
    def index(self) -> Tensor | None:
        """The rows that walk, as an index; None for all."""
        return rows_tensor(self.rows, self.of, self.state.device)

    def advance(self, layer: int, after: Tensor) -> None:
        """The state after `layer` (1-based) of the rows that walk; those that are ready leave with it."""
        at = Step(layer, self.at.layers, self.at.step, self.at.steps, self.at.tokens)
        before, self.state = self.state, after
        if isinstance(self.rule, Hindsight):
            return self._look_back(before, after, at)
        leave = self._ready(before, after, at)
        if self.session.plan.shadow and self.stack.kind == "decoder":
            leave = self._in_shadow(leave, after, at)
        going = [i for i, out in enumerate(leave) if out]
        if not going:
            return
        for i in going:
            self.depth[self.rows[i]] = self.depth[self.rows[i]] or layer
        if layer < at.layers and self.session.answers.trained(self.stack):
            self._answer(going, after, at)
        if len(going) == self.of:
            self.result, self.rows = after, []
            return
        if self.result is None:
            self.result = after.new_zeros((self.of, *after.shape[1:]))
        device = after.device
        if len(going) == len(self.rows):
            self.result[torch.tensor(self.rows, device=device)] = after
            self.rows = []
            return
        self.result[torch.tensor([self.rows[i] for i in going], device=device)] = after[torch.tensor(going, device=device)]
        staying = [i for i, out in enumerate(leave) if not out]
        self.rows = [self.rows[i] for i in staying]
        kept = torch.tensor(staying, device=device)
        self.state = after.index_select(0, kept)
        self.memory = {name: value.index_select(0, kept) for name, value in self.memory.items()}

    def _in_shadow(self, leave: list[bool], after: Tensor, at: Step) -> list[bool]:
        """Notes the depth and the state of rows that would leave here for the first time; none does before the last layer."""
        if self.left is None:
            self.left = after.new_zeros((self.of, *after.shape[1:]))
        for i, row in enumerate(self.rows):
            if leave[i] and not self.depth[row]:
                self.depth[row], self.left[row] = at.layer, after[i]
        return [at.layer == at.layers] * len(self.rows)

    def _answer(self, going: list[int], after: Tensor, at: Step) -> None:
        """What the head of this exit says of the rows that leave: as the rule has read it, or read now for these rows alone."""
        answers, index = self.session.answers, torch.tensor(going, device=after.device)
        place = self._place(self._own_mask())
        if self.view is not None and self.view.at.layer == at.layer and self.view.was_read:
            said = Said(*(part.index_select(0, index) for part in self.view.said))
        else:
            token = state_at(after, place).index_select(0, index)
            memory = {name: value.index_select(0, index) for name, value in self.memory.items()}
            said = answers.read(self.stack, at, after.index_select(0, index), token, memory)
        answers.leave([self.rows[i] for i in going], said, _from_end(place, going, after.shape[1]))

    def _ready(self, before: Tensor, after: Tensor, at: Step) -> list[bool]:
        """Which of the walking rows leave after this layer. At most one host synchronisation, and none where nothing is in doubt."""
        sure = None
        if self.sure is not None and not (isinstance(self.rule, Reading) and at.layer == at.layers):
            sure = self._measure(before, after, at)
            self.sure[self.rows, at.layer - 1] = torch.tensor(sure, dtype=torch.float32)
        if at.layer == at.layers:
            return [True] * len(self.rows)
        if self.foretold is not None:
            return [self.foretold[r] <= at.layer for r in self.rows]
        if not self.rule.may_leave(at):
            return [False] * len(self.rows)
        leave: list[bool] = self.rule.leaves(self._measure(before, after, at) if sure is None else sure, at, self.rows)
        return _in_groups(leave, min(self.group, len(leave)))

    def _own_mask(self) -> Tensor | None:
        """The mask of the rows that walk."""
        if self.mask is None or len(self.rows) == self.of:
            return self.mask
        return self.mask.index_select(0, torch.tensor(self.rows, device=self.mask.device))

    def _measure(self, before: Tensor, after: Tensor, at: Step) -> list[float]:
        if self.session.plan.pooled and not isinstance(self.rule, Reading):
            # the tokens of all rows as those of a single one; nothing is left out, pads neither
            return self.rule.sureness(before.flatten(0, 1)[None], after.flatten(0, 1)[None], None) * len(self.rows)
        mask = self._own_mask()
        if not isinstance(self.rule, Reading):
            return self.rule.sureness(before, after, mask)
        self.view = self._view(before, after, at, mask)
        measured: list[float] = self.rule.measure(self.view).tolist()
        return measured

    def _view(self, before: Tensor, after: Tensor, at: Step, mask: Tensor | None) -> View:
        candidates = self.session.plan.candidates if self.stack.kind == "decoder" else None
        return self.session.answers.view(self.stack, at, (before, after), self._place(mask), self.memory, candidates)

    def _place(self, mask: Tensor | None) -> Place:
        """What is read: of an encoder what its exits say, else the first token; of a decoder the last one, or where the plan says."""
        if self.stack.kind != "decoder":
            exits = self.session.answers.exits
            return 0 if exits is None else exits.place(mask)
        return self.session.plan.place if self.session.plan.place is not None else -1 if mask is None else last_real(mask)

    def _look_back(self, before: Tensor, after: Tensor, at: Step) -> None:
        """Notes what this exit says; after the last layer, each row gets the first state whose answer was the last one's."""
        self.seen.append((after, self._view(before, after, at, self._own_mask()).said))
        if at.layer < at.layers:
            return
        depths = enough([said.logits.float() for _, said in self.seen])
        size = min(self.group, len(depths))
        for i, row in enumerate(self.rows):
            depth = self.depth[row] = max(depths[i - i % size : i - i % size + size])
            if self.result is None:
                self.result = after.new_zeros((self.of, *after.shape[1:]))
            state, said = self.seen[depth - 1]
            self.result[row] = state[i]
            if depth < at.layers and self.session.answers.trained(self.stack):
                one = Said(*(part[i : i + 1] for part in said))
                self.session.answers.leave([row], one, _from_end(self._place(self._own_mask()), [i], after.shape[1]))
        self.rows = []


def _from_end(place: Place, going: list[int], tokens: int) -> list[int]:
    """The token that is read of each of these rows (places among those that walk), counted from the end: -1 is the last; none of a mean."""
    if isinstance(place, Mean):
        return []
    found = [place] * len(going) if isinstance(place, int) else [int(place[i]) for i in going]
    return [p if p < 0 else p - tokens for p in found]


def _in_groups(leave: list[bool], group: int) -> list[bool]:
    """Rows of a group (which stay together, so they follow each other) leave when the last of them is ready."""
    if group <= 1:
        return leave
    return [all(leave[i - i % group : i - i % group + group]) for i in range(len(leave))]


class EncoderWalk:
    """One stack of an encoder, while a session is attached."""

    def __init__(self, session: Session, stack: Stack) -> None:
        self.session, self.stack = session, stack
        self.layers = len(stack.layers(session.model))
        self.given: dict[str, Any] = {}
        self.walkers: dict[str, tuple[tuple[int, int], Walker]] = {}
        self.extras: tuple[Any, ...] | None = None
        self.turn = 0

    def owner_call(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.given, self.turn = named(owner, args, kwargs), 0
        try:
            return plain_call(owner, args, kwargs)
        finally:
            self.given, self.walkers, self.extras = {}, {}, None

    def layer_handler(self, places: list[int]) -> Callable[..., Any]:
        """What a layer's call comes to. places: where it runs, from 0; a layer that runs more than once is told by counting calls."""

        def handle(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            index, self.turn = places[0] if len(places) == 1 else self.turn, self.turn + 1
            return self._layer(index, layer, args, kwargs)

        return handle

    def _layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = named(layer, args, kwargs)
        first = next(iter(call))
        hidden = call.pop(first)
        if index == 0:
            if call.get("past_key_values") is not None:
                raise FamilyError(
                    f"{self.stack.path} is given a cache of keys and values: its family must say kind='decoder', not 'encoder'."
                )
            self._begin(hidden)
        for span, walker in self.walkers.values():
            if not walker.rows:
                continue
            cut = self._cut(call, walker, span, hidden.shape)
            out = plain_call(layer, (walker.state,), cut)
            after, extras = split_output(out)
            self.extras = extras if extras is not None else self.extras
            self.session.worked(self.stack, len(walker.rows), after.shape[1])
            walker.advance(index + 1, after)
        state = self._finish(hidden) if index == self.layers - 1 else hidden
        return state if self.extras is None else (state, *self.extras)

    def _begin(self, hidden: Tensor) -> None:
        rows, tokens = hidden.shape[:2]
        spans = self._spans(tokens)
        for stream, span in spans.items():
            state = hidden if span == (0, tokens) else hidden[:, span[0] : span[1]]
            names = stream.split("+")
            rule = self.session.plan.rules.get(names[-1] if len(names) == 1 else stream, self.session.plan.rules.get(names[0]))
            walker = Walker(self.session, self.stack, rule, list(range(rows)), state, self._mask(span, tokens), self.layers, rows)
            self.walkers[stream] = span, walker

    def _spans(self, tokens: int) -> dict[str, tuple[int, int]]:
        """Streams that walk apart; one joint stream 'a+b' if the plan does not decompose."""
        streams = self.stack.streams
        if len(streams) == 1 or self.stack.spans is None:
            return {"+".join(streams): (0, tokens)}
        if not self.session.plan.decompose:
            return {"+".join(streams): (0, tokens)}
        spans = self.stack.spans(self.session.model, tokens, {**self.session.listened, **self.session.heard, **self.given})
        return {s: span for s, span in spans.items() if span[1] > span[0]}

    def _mask(self, span: tuple[int, int], tokens: int) -> Tensor | None:
        mask = self.given.get(self.stack.token_mask)
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        if mask.shape[1] == tokens:
            return mask[:, span[0] : span[1]]
        if mask.shape[1] == span[1] - span[0] and span[0] > 0:
            return mask
        if span == (0, tokens) and mask.shape[1] < tokens:  # the joint stream of image tokens, all real, and masked text
            return torch.cat([mask.new_ones((mask.shape[0], tokens - mask.shape[1])), mask], 1)
        return None

    def _cut(self, call: dict[str, Any], walker: Walker, span: tuple[int, int], shape: torch.Size) -> dict[str, Any]:
        rows, whole = walker.index, span == (0, shape[1])
        if rows is None and whole:
            return call
        out = {}
        for name, value in call.items():
            value = value if name in self.stack.shared else pick(value, rows, walker.of)
            out[name] = value if whole or name in self.stack.cross else _cut_tokens(value, span, shape[1])
        return out

    def _finish(self, hidden: Tensor) -> Tensor:
        """The state in which each token left, in the places where the tokens came in; and the record of it."""
        record = self.session.encoded
        for stream, (span, walker) in self.walkers.items():
            for name in stream.split("+"):
                tokens: Any = span[1] - span[0] if walker.mask is None else walker.mask.sum(1)
                record.setdefault(name, []).append((walker.depth, tokens, walker.sure))
                self.session.layers[name] = self.layers
            if walker.result is None:
                raise FamilyError(f"The rows of {stream!r} never left {self.stack.path}: its owner did not call all {self.layers} layers.")
        parts = [walker.result for _, walker in self.walkers.values() if walker.result is not None]
        if len(parts) == 1 and parts[0].shape[1] == hidden.shape[1]:
            return parts[0]
        out = hidden.clone()
        for span, walker in self.walkers.values():
            assert walker.result is not None
            out[:, span[0] : span[1]] = walker.result
        return out


def _cut_tokens(value: Any, span: tuple[int, int], tokens: int) -> Any:
    """A stream's part of an argument: of both token axes of a mask or bias (4 dimensions), of the one of positions (2 or 3); an
    object of a model's own by `cut_tokens`."""
    if isinstance(value, tuple):
        return tuple(_cut_tokens(v, span, tokens) for v in value)
    if not isinstance(value, Tensor):
        return value.cut_tokens(span) if hasattr(value, "cut_tokens") else value
    if value.dim() == 4:
        if value.shape[-1] == tokens:
            value = value[..., span[0] : span[1]]
        return value[..., span[0] : span[1], :] if value.shape[-2] == tokens else value
    return value[:, span[0] : span[1]] if value.dim() in (2, 3) and value.shape[1] == tokens else value
