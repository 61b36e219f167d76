"""What a run cost: ETR (layers only), counted MACs, and nothing that is guessed. Wall-clock is measured elsewhere and never mixed
with these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two products: scores and mixing, 2 operations per multiply-accumulate."""
    rows, heads, queries, width = query
    keys, out = key[-2], value[-1]
    return int(2 * rows * heads * queries * keys * (width + out))


class Counted:
    """MACs by module path ('Global' is everything)."""

    def __init__(self) -> None:
        self.by_module: dict[str, int] = {}

    @property
    def total(self) -> int:
        """All multiply-accumulates."""
        return self.by_module.get("Global", 0)

    def below(self, path: str) -> int:
        """MACs of the module at `path` (dotted, from the model)."""
        return max((n for p, n in self.by_module.items() if p == path or p.endswith("." + path)), default=0)


@contextmanager
def count_macs(model: nn.Module | None = None) -> Iterator[Counted]:
    """Count multiply-accumulates of everything that runs inside: products, convolutions and attention, whoever calls them.

    The attention kernel of the CPU, which torch's counter passes over, is counted too. Norms, activations and cosines are not.
    Counting slows a
    run down: do not time inside.
    """
    aten = torch.ops.aten
    extra = {aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counted = Counted()
    mode = FlopCounterMode(display=False, custom_mapping=extra)
    with mode:
        yield counted
    counted.by_module = {name: sum(ops.values()) // 2 for name, ops in mode.get_flop_counts().items()}
