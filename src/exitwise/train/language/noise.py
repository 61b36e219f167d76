"""What happens to layers in training: left out by chance for whole rows, or by schedule for single positions. Hooks, and nothing is
left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exitwise.errors import KnobError


def dropout_rates(layers: int, most: float, step: int = 0, steps: int | None = None) -> list[float]:
    """The chance with which each layer l = 0..L-1 is left out: most * S(t) * (2^(l / (L-1)) - 1) (LayerSkip, arXiv:2404.16710).

    steps: of a training from scratch, over which S(t) = 2^(t / (T-1)) - 1 grows from 0 to 1; None is for a model that was trained (S = 1).

    >>> [round(rate, 4) for rate in dropout_rates(3, 0.2)]
    [0.0, 0.0828, 0.2]
    >>> dropout_rates(3, 0.2, 0, 10), round(dropout_rates(3, 0.2, 9, 10)[-1], 4)
    ([0.0, 0.0, 0.0], 0.2)
    """
    if not 0 <= most < 1:
        raise KnobError(f"layer dropout of {most} is not a chance. Allowed: 0 to below 1, such as 0.1.")
    grown = 1.0 if steps is None else 2 ** (min(step, steps - 1) / max(1, steps - 1)) - 1
    return [most * grown * (2 ** (layer / max(1, layers - 1)) - 1) for layer in range(layers)]


def layers_run(position: int, layers: int, most: int, least: int, length: int) -> int:
    """Layers that run at a generated position: from `most` at 0 in a straight line to `least` at `length` - 1 (SkipDecode,
    arXiv:2307.02628). Halves are rounded up; a prompt's positions are below 0 and take `most`. layers: of the model, for the check.

    >>> [layers_run(t, 6, 6, 3, 4) for t in (-5, 0, 1, 2, 3, 99)]
    [6, 6, 5, 4, 3, 3]
    """
    if not 1 <= least <= most <= layers or length < 2:
        raise KnobError(
            f"{most} to {least} layers over {length} positions: allowed are 1..{layers}, the most first, and 2 positions or more."
        )
    return math.floor(most - (most - least) * min(max(position, 0), length - 1) / (length - 1) + 0.5)


def scheduled_layers(position: int, layers: int, most: int, least: int, length: int, warm: int = 1) -> list[int]:
    """Numbers (from 0) of the layers that run: the first `warm`, and the last of the model. Each set lies within the one before.

    >>> [scheduled_layers(t, 6, 6, 3, 3) for t in (0, 1, 2)]
    [[0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 4, 5]]
    """
    if not 0 <= warm <= least:
        raise KnobError(f"warm={warm} layers at the bottom do not fit into {least} layers. Allowed: 0..{least}.")
    run = layers_run(position, layers, most, least, length)
    return sorted({*range(warm), *range(layers - (run - warm), layers)})


def scheduled_masks(positions: Tensor, layers: int, most: int, least: int, length: int, warm: int = 1) -> list[Tensor]:
    """For each layer, (rows, tokens): true where it runs. positions (rows, tokens): 0 at the state that says the first generated token."""
    table = torch.zeros(length, layers, dtype=torch.bool, device=positions.device)
    for position in range(length):
        table[position, scheduled_layers(position, layers, most, least, length, warm)] = True
    return list(table[positions.clamp(0, length - 1)].unbind(-1))


def kept_rows(rates: Sequence[float], rows: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """For each layer, (rows, 1): true where the row runs it; drawn from torch's generator of that device."""
    return [torch.rand(rows, 1, device=device) >= rate for rate in rates]


@contextmanager
def left_out(layers: Sequence[nn.Module], kept: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, each layer's output is its input where its mask (rows, 1 or tokens) is false; nothing is rescaled.

    Keys of what is left out are those that the layer made all the same: right where whole rows leave, and where the positions that need a
    layer come before those that do not.
    """
    hooks = [
        layer.register_forward_hook(_choosing(mask), with_kwargs=True)
        for layer, mask in zip(layers, kept, strict=True)
        if not bool(mask.all())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _choosing(mask: Tensor) -> Any:
    def choose(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], out: Any) -> Any:
        before = given[0] if given else named["hidden_states"]
        after = out[0] if isinstance(out, tuple) else out
        chosen = torch.where(mask[..., None], after, before)
        return (chosen, *out[1:]) if isinstance(out, tuple) else chosen

    return choose
