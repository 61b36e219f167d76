"""How a language model reads a state out, found by watching it once: the norm between its last layer and its head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exitwise.errors import FamilyError
from exitwise.stack import Stack

Readout = Callable[[Any, Tensor], Tensor]


def final_norm(model: Any, stack: Stack) -> str:
    """The dotted path of the module that takes the last layer's state and gives what the head reads; '' where the head reads the state.

    Raises FamilyError where there is no such module: something else stands between.
    """
    head, last = model.get_output_embeddings(), stack.layers(model)[-1]
    inside = {id(module) for layer in stack.layers(model) for module in layer.modules()}
    came: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(_keep(came, name))
        for name, module in model.named_modules()
        if name and (id(module) not in inside or module is last)
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(input_ids=torch.arange(1, 4, device=next(model.parameters()).device)[None], use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    names = {id(module): name for name, module in model.named_modules()}
    state, read = came[names[id(last)]][1], came[names[id(head)]][0]
    if _same(state, read):
        return ""
    for name, (before, after) in came.items():
        if _same(before, state) and _same(after, read):
            return name
    raise FamilyError(
        f"{type(model).__name__} does more than one module's work between its last layer and its head. Give its family a `readout`."
    )


def readout_of(model: Any, stack: Stack) -> Readout:
    """(model, state (rows, tokens, width)) -> logits, by `final_norm` and the model's head."""
    path = final_norm(model, stack)

    def read(owner: Any, state: Tensor) -> Tensor:
        norm: Any = owner.get_submodule(path) if path else nn.Identity()
        logits: Tensor = owner.get_output_embeddings()(norm(state))
        return logits

    return read


def _keep(came: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    def keep(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, Tensor):
            came[name] = (given[0] if given and isinstance(given[0], Tensor) else first.new_zeros(0), first)

    return keep


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))
