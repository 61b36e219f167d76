"""What rows answer at an exit, and how the answer of a trained head comes out of the model in the place of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import Step
from ..errors import FamilyError, InputError
from ..heads import Exits, Place, Said, state_at
from ..reading import View
from ..stack import Family, Stack, reach


class Answers:
    """The read-outs of one session: trained heads where there are any, else the model's own. counted is told of each trained head."""

    def __init__(self, model: nn.Module, family: Family, exits: Exits | None, counted: Callable[[], None]) -> None:
        self.model, self.family, self.exits, self.counted = model, family, exits, counted
        self.left: list[tuple[list[int], list[int], Said]] = []
        self.rows, self.reading = 0, False
        self.ramps: Any = None if exits is None else exits.ramps
        self.parts = exits.parts if exits is not None else nn.ModuleDict()
        self.cheaply: Callable[[Tensor], Tensor] | None = None  # reads states (rows, tokens, width) of a language model's exits instead

    def trained(self, stack: Stack) -> bool:
        """Whether exits of this stack say something of their own: heads for a classifier's encoder, ramps for a decoder."""
        return self.ramps is not None if stack.kind == "decoder" else self.exits is not None and len(self.exits.heads) > 0

    def begin(self, rows: int) -> None:
        """A new call of the model, with so many rows."""
        self.left, self.rows = [], rows

    def view(self, stack: Stack, at: Step, pair: tuple[Tensor, Tensor], place: Place, memory: dict[str, Tensor],
             candidates: tuple[int, ...] | None) -> View:  # fmt: skip
        """What a rule sees. pair: states (rows, tokens, width) before and after the layer; place: what is read of each row."""
        before, token = (state_at(state, place) for state in pair)
        return View(at, token, before, lambda: self.read(stack, at, pair[1], token, memory, candidates), memory, self.parts)

    def read(
        self, stack: Stack, at: Step, state: Tensor, token: Tensor, memory: dict[str, Tensor], candidates: tuple[int, ...] | None = None
    ) -> Said:
        """What the exit after this layer says of these rows; restricted to `candidates` if there are any."""
        layer = at.layer
        if self.exits is not None and 1 <= layer <= len(self.exits.heads):
            self.counted()
            said: Said = self.exits.heads[layer - 1](token)
            return said
        if stack.kind == "decoder" and self.ramps is not None and layer < at.layers:
            token = self.ramps(layer, token, memory)
        if self.cheaply is not None:
            return Said(token, self.cheaply(token[:, None])[:, 0])
        readout = self.family.readout
        if readout is None:
            raise FamilyError(
                f"Nothing reads a state of {type(self.model).__name__}. Give its family a `readout`, or train exits with heads."
            )
        self.reading = True  # the head that is asked here is the one in whose place exits answer
        try:
            logits = readout(self.model, state if stack.kind == "encoder" else token[:, None])
        finally:
            self.reading = False
        if stack.kind != "encoder":
            logits = logits[:, 0]
        if logits.dim() != 2:
            raise FamilyError(f"{type(self.model).__name__} answers {tuple(logits.shape)}, not once a row: no exit can be judged by it.")
        return Said(token, logits if candidates is None else logits[:, _checked(candidates, logits.shape[1])])

    def leave(self, rows: Sequence[int], said: Said, places: Sequence[int] = ()) -> None:
        """These rows (numbers in the batch) left early with these answers. places: of a decoder, the token that was read, from the end."""
        self.left.append((list(rows), list(places), said))

    def given(self, states: Tensor) -> Tensor:
        """What a decoder's head is given in the place of the states (rows, 1, width) with which rows left: their trained exits' own."""
        if not self.left:
            return states
        states = states.clone()
        for rows, _, said in self.left:
            states[torch.tensor(rows, device=states.device), -1] = said.feature.to(states)
        self.left = []
        return states

    def put(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A hook on the model's classifier: rows that left early get their exit's answer, the others keep their own, untouched."""
        if not self.left or self.reading:
            return None
        if self.ramps is not None:
            return self._put_words(module, output)
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != self.rows:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FamilyError(
                f"{type(module).__name__} gave {shape}, not one answer for each of {self.rows} rows: exits cannot speak for it."
            )
        out = output.clone()
        for rows, _, said in self.left:
            out[torch.tensor(rows, device=out.device)] = said.logits.to(out)
        self.left = []
        return out

    def _put_words(self, module: nn.Module, output: Any) -> Tensor:
        """The same for a decoder: the token that was read gets what its ramp said, all others keep their own."""
        if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[0] != self.rows:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FamilyError(f"{type(module).__name__} gave {shape}, not logits of tokens of {self.rows} rows: exits cannot speak here.")
        out = output.clone()
        for rows, places, said in self.left:
            out[torch.tensor(rows, device=out.device), torch.tensor(places, device=out.device)] = said.logits.to(out)
        self.left = []
        return out


def head_of(model: nn.Module, family: Family) -> nn.Module | None:
    """The module that makes logits: what the family names, its classifier, or what the model's `get_output_embeddings` gives."""
    if family.head is not None:
        return reach(model, family.head)
    classifier = family.classifier_of(model)
    if classifier is not None:
        return classifier
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    return head if isinstance(head, nn.Module) else None


def _checked(candidates: tuple[int, ...], most: int) -> list[int]:
    if not all(0 <= c < most for c in candidates):
        raise InputError(f"Candidates {list(candidates)} are outside the answers 0..{most - 1} of this model.")
    return list(candidates)


def placed(model: nn.Module, family: Family, exits: Exits) -> nn.Module | None:
    """The classifier in whose place the heads answer, or the head in whose place ramps do; None if these exits have neither.

    Raises FamilyError where they have no place to answer.
    """
    if exits.ramps is not None:
        stacks, head = family.stacks_of(model), head_of(model, family)
        if head is None or all(stack.kind != "decoder" for stack in stacks):
            raise FamilyError(f"Exits with ramps speak for a decoder with a head of its own, which {type(model).__name__} has not.")
        return head
    if not len(exits.heads):
        return None
    stacks = family.stacks_of(model)
    found = family.classifier_of(model)
    if found is None or len(stacks) != 1 or stacks[0].kind != "encoder" or len(stacks[0].streams) != 1:
        raise FamilyError(
            f"Exits with heads answer for a classifier on one encoder with one stream, which {type(model).__name__} is not said to be. "
            "Its family must name the `classifier`."
        )
    return found
