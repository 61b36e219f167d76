"""What rows answer at an exit, and how the answer of a trained head comes out of the model in the place of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import Step
from ..errors import FamilyError, InputError
from ..heads import Exits, Said
from ..reading import View
from ..stack import Family, Stack


class Answers:
    """The read-outs of one session: trained heads where there are any, else the model's own. counted is told of each trained head."""

    def __init__(self, model: nn.Module, family: Family, exits: Exits | None, counted: Callable[[], None]) -> None:
        self.model, self.family, self.exits, self.counted = model, family, exits, counted
        self.left: list[tuple[list[int], Tensor]] = []
        self.rows = 0
        self.parts = exits.parts if exits is not None else nn.ModuleDict()
        self.cheaply: Callable[[Tensor], Tensor] | None = None  # reads states (rows, tokens, width) of a language model's exits instead

    @property
    def trained(self) -> bool:
        """Whether exits have heads of their own."""
        return self.exits is not None and len(self.exits.heads) > 0

    def begin(self, rows: int) -> None:
        """A new call of the model, with so many rows."""
        self.left, self.rows = [], rows

    def view(self, stack: Stack, at: Step, pair: tuple[Tensor, Tensor], places: Tensor | int, memory: dict[str, Tensor],
             candidates: tuple[int, ...] | None) -> View:  # fmt: skip
        """What a rule sees. pair: states (rows, tokens, width) before and after the layer; places: the token that is read, of each row."""
        before, token = (state_at(state, places) for state in pair)
        return View(at, token, before, lambda: self.read(stack, at.layer, pair[1], token, candidates), memory, self.parts)

    def read(self, stack: Stack, layer: int, state: Tensor, token: Tensor, candidates: tuple[int, ...] | None = None) -> Said:
        """What the exit after this layer says of these rows; restricted to `candidates` if there are any."""
        if self.exits is not None and 1 <= layer <= len(self.exits.heads):
            self.counted()
            said: Said = self.exits.heads[layer - 1](token)
            return said
        if self.cheaply is not None:
            return Said(token, self.cheaply(token[:, None])[:, 0])
        readout = self.family.readout
        if readout is None:
            raise FamilyError(
                f"Nothing reads a state of {type(self.model).__name__}. Give its family a `readout`, or train exits with heads."
            )
        logits = readout(self.model, state if stack.kind == "encoder" else token[:, None])
        if stack.kind != "encoder":
            logits = logits[:, 0]
        if logits.dim() != 2:
            raise FamilyError(f"{type(self.model).__name__} answers {tuple(logits.shape)}, not once a row: no exit can be judged by it.")
        return Said(token, logits if candidates is None else logits[:, _checked(candidates, logits.shape[1])])

    def leave(self, rows: Sequence[int], logits: Tensor) -> None:
        """These rows (numbers in the batch) left early with these answers."""
        self.left.append((list(rows), logits))

    def put(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A hook on the model's classifier: rows that left early get their exit's answer, the others keep their own, untouched."""
        if not self.left:
            return None
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != self.rows:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FamilyError(
                f"{type(module).__name__} gave {shape}, not one answer for each of {self.rows} rows: exits cannot speak for it."
            )
        out = output.clone()
        for rows, logits in self.left:
            out[torch.tensor(rows, device=out.device)] = logits.to(out)
        self.left = []
        return out


def state_at(state: Tensor, places: Tensor | int) -> Tensor:
    """(rows, width): the token at these places, one of each row or the same for all."""
    if isinstance(places, int):
        return state[:, places]
    return state[torch.arange(len(places), device=state.device), places]


def _checked(candidates: tuple[int, ...], most: int) -> list[int]:
    if not all(0 <= c < most for c in candidates):
        raise InputError(f"Candidates {list(candidates)} are outside the answers 0..{most - 1} of this model.")
    return list(candidates)


def placed(model: nn.Module, family: Family, exits: Exits) -> nn.Module | None:
    """The classifier in whose place the heads answer; None if these exits have no heads.

    Raises FamilyError where exits with heads have no place to answer.
    """
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
