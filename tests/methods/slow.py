"""A slow, plain reference for methods that read answers: the untouched model's states, row by row and layer by layer, and rules by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tests.families.cases import alone, layer_outputs
from torch import Tensor

from exitwise import Engine
from exitwise.heads import Exits


def exits_for(model: Any, method: str, reads: str = "first") -> Exits:
    """Random exits of a method's kind, with weights of a scale at which answers differ."""
    exits = Engine(model, method).fresh_exits(seed=3, reads=reads)
    dice = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in exits.parameters():
            value.copy_(torch.randn(value.shape, generator=dice) / value.shape[-1] ** 0.5)
    return exits


def states_of(model: Any, inputs: Mapping[str, Any], stack: Any) -> list[Tensor]:
    """The state after each layer, (rows, tokens, width) each, of the untouched model."""

    def run() -> None:
        with torch.no_grad():
            model(**inputs)

    unique = list(dict.fromkeys(stack.layers(model)))
    seen = layer_outputs(unique, run)
    return seen[0] if len(unique) == 1 else [calls[0] for calls in seen]


def by_hand(engine: Engine, inputs: Mapping[str, Any], ready: Callable[[list[Tensor], list[Tensor]], bool]) -> tuple[list[int], Tensor]:
    """(depths, logits) row by row. ready: (first tokens so far (width,), logits so far (classes,)) -> whether the row leaves here."""
    model, exits = engine.model, engine.exits
    (stack,) = engine.family.stacks_of(model)
    depths, answers = [], []
    for row in range(len(next(iter(inputs.values())))):
        one = alone(inputs, row, strip=False)
        with torch.no_grad():
            own = model(**one).logits[0]
        tokens: list[Tensor] = []
        said: list[Tensor] = []
        states = states_of(model, one, stack)
        for layer, state in enumerate(states, 1):
            if layer == len(states):
                said.append(own)
                break
            averaged = exits is not None and exits.reads == "mean"
            tokens.append(state[0][one["attention_mask"][0].bool()].mean(0) if averaged else state[0, 0])
            with torch.no_grad():
                if exits is not None and len(exits.heads):
                    head: Any = exits.heads[layer - 1]
                    said.append(head.out(torch.tanh(head.pool(tokens[-1]))))
                else:
                    said.append(engine.family.readout(model, state)[0])  # type: ignore[misc]
            if ready(tokens, said):
                break
        depths.append(len(said))
        answers.append(said[-1])
    return depths, torch.stack(answers)
