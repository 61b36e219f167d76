"""What a run cost: ETR (layers only), counted MACs, and nothing that is guessed. Wall-clock is measured elsewhere and never mixed
with these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .stack import reach
from .trace import Trace

READINGS = ("mean", "max", "tokens")


def etr(trace: Trace, reading: str = "mean") -> float:
    """Expected time reduction of Tang et al. 2023: 1 - sum_i w_i (n_E + n_D,i) / ((N_E + N_D) sum_i w_i), in [0, 1).

    n_E merges the encoder's streams; the paper does not say how: 'mean' is (p + q) / 2 (the only reading that fits its tables),
    'max' the deeper
    stream, 'tokens' the mean weighted by the streams' tokens. n_D: mean layers of a computed decoder step. A model with only an encoder
    or only a decoder counts what it has. Layers only: no stem, no head, all layers alike.
    """
    encoder = [s for s, d in trace.depth.items() if d.dim() == 1]
    decoder = [s for s, d in trace.depth.items() if d.dim() == 2]
    used = total = 0.0
    if encoder:
        depth = torch.stack([trace.depth[s].double() for s in encoder])
        if reading == "max":
            merged = depth.amax(0)
        elif reading == "tokens":
            weight = torch.stack([trace.tokens[s].double() for s in encoder])
            merged = (depth * weight).sum(0) / weight.sum(0)
        elif reading == "mean":
            merged = depth.mean(0)
        else:
            raise ValueError(f"reading={reading!r} is not known. Allowed: {', '.join(READINGS)}.")
        total += sum(trace.layers[s] for s in encoder) / len(encoder)
        used += _weighted(merged, trace, decoder)
    for stream in decoder:
        used += trace.mean_depth(stream)
        total += trace.layers[stream]
    return 1 - used / total if total else 0.0


def _weighted(merged: Tensor, trace: Trace, decoder: list[str]) -> float:
    """Mean encoder depth over words: a row counts as often as it has decoder steps (beams of a row together)."""
    if not decoder:
        return float(merged.mean())
    words = (trace.depth[decoder[0]] > 0).sum(1).double()
    if len(words) % len(merged):
        return float(merged.mean())
    words = words.view(len(merged), -1).sum(1)
    return float((merged * words).sum() / words.sum().clamp(min=1))


def etr_readings(trace: Trace) -> dict[str, float]:
    """ETR in its three readings."""
    return {reading: etr(trace, reading) for reading in READINGS}


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Two products: scores and mixing, 2 operations per multiply-accumulate."""
    rows, heads, queries, width = query.shape
    return int(2 * rows * heads * queries * key.shape[-2] * (width + value.shape[-1]))


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Multiply-accumulates of all that ran. total: everything; below[path]: what ran inside the module at that path."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.below: dict[str, int] = {}
        self._inside: list[str] = []
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self._formulas = {**flop_registry, attention: _attention_flops}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            macs = formula(*args, **(kwargs or {}), out_val=out) // 2
            self.total += macs
            for path in self._inside:
                self.below[path] = self.below.get(path, 0) + macs
        return out

    def watch(self, path: str, module: nn.Module) -> Iterator[Callable[[], None]]:
        """Note what runs inside a module; yields the undoing of its hooks."""

        def enter(*_: Any) -> None:
            self._inside.append(path)

        def leave(*_: Any) -> None:
            self._inside.remove(path)

        yield module.register_forward_pre_hook(enter).remove
        yield module.register_forward_hook(leave, always_call=True).remove


@contextmanager
def count_macs(model: nn.Module | None = None, paths: Sequence[str] = ()) -> Iterator[Counted]:
    """Count multiply-accumulates of everything that runs inside: products, convolutions and attention, whoever calls them.

    paths: dotted paths in `model` to count apart as well. The attention kernel of the CPU, which torch's own counter passes over, is
    counted too; norms, activations and cosines are not. Counting slows a run down: do not time inside.
    """
    counted = Counted()
    undo = [step for path in paths for step in counted.watch(path, reach(model, path))]
    try:
        with counted:
            yield counted
    finally:
        for step in undo:
            step()
