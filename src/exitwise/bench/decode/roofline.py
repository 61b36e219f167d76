"""How near a decoding step comes to what the machine allows, and what the counted savings are worth where memory alone decides.

A step of a decoder reads every weight once. Its floor on this machine is measured: the model's own matrix products, one after the other,
with nothing in between. What `generate` takes beyond the floor is all that any loop can save at full depth; what the products of several
tokens take beyond those of one is what verifying drafts costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...engine import Engine
from ...few import MOST, Kernel, kernel
from .. import speed
from . import long

TOKENS = (1, 2, 3, 5, 9)  # of a pass: one, or one and its drafts
SHORT, LONG = 4, 24  # tokens of the two runs whose difference has no prompt in it


@dataclass(frozen=True)
class Device:
    """bandwidth: bytes a second of its memory. flops: dense operations a second in bfloat16. Both as the maker publishes them."""

    name: str
    bandwidth: float
    flops: float


GPUS = (Device("NVIDIA L4", 300e9, 121e12), Device("NVIDIA A100 80GB SXM", 2039e9, 312e12), Device("NVIDIA H100 SXM", 3350e9, 989e12))


def matrices(model: nn.Module) -> list[Tensor]:
    """The weights that a step multiplies, (out, in) each: all linear layers, the head among them, in the order of the model's parts."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(module.weight.detach())
        elif isinstance(module, Conv1D):  # GPT-2's linear layer, turned
            found.append(module.weight.detach().t())
    return found


def products(weights: Sequence[Tensor], tokens: int, ours: bool = True) -> Callable[[], None]:
    """All these products for so many tokens, in the order in which they are read. ours: by the kernel, where there is one."""
    given = {w.shape[1]: torch.randn(tokens, w.shape[1], dtype=w.dtype, device=w.device) for w in weights}
    made = kernel() if ours and tokens <= MOST else None

    def run() -> None:
        for weight in weights:
            product = made if made is not None and Kernel.takes(weight) else F.linear
            product(given[weight.shape[1]], weight)

    return run


@torch.no_grad()
def measure(model: Any, repeats: int, prompt: int = 32) -> dict[str, Any]:
    """Seconds of a step of `generate` and of our loop at full depth, and of the products alone, alternating; medians.

    ceiling: how many times as fast as `generate` a loop would be that did nothing but the products. reached: what ours is. of_ceiling:
    ours, as a share of the floor's speed. pass_over_one: what the products of several tokens cost, over those of one; pytorch: the same of
    PyTorch's, where the floor is the kernel's.
    """
    weights = matrices(model)
    given = {**long.padded(long.prompts(model.config.get_text_config().vocab_size, 1, prompt)), "do_sample": False}
    untouched = partial(model.generate, **given, eos_token_id=None, pad_token_id=0)
    ours = partial(Engine(model, "never").generate, **given, eos_token_id=[])
    ways: dict[str, Callable[[], Any]] = {f"products of {tokens}": products(weights, tokens) for tokens in TOKENS}
    ways |= {f"PyTorch's products of {tokens}": products(weights, tokens, ours=False) for tokens in TOKENS}
    for name, way in (("generate", untouched), ("full", ours)):
        ways |= {f"{name} {count}": partial(way, max_new_tokens=count) for count in (SHORT, LONG)}
    seconds = speed.alternate(ways, repeats)
    step = {n: [(b - a) / (LONG - SHORT) for a, b in zip(seconds[f"{n} {SHORT}"], seconds[f"{n} {LONG}"])] for n in ("generate", "full")}
    medians = {name: statistics.median(times) for name, times in {**step, **seconds}.items()}
    floor = medians["products of 1"]
    return {
        "weights_mib": sum(w.numel() * w.element_size() for w in weights) / 2**20, "floor_s": floor,
        "generate_s": medians["generate"], "full_s": medians["full"], "ceiling": medians["generate"] / floor,
        "reached": medians["generate"] / medians["full"], "of_ceiling": floor / medians["full"],
        "pass_over_one": {str(t): medians[f"products of {t}"] / floor for t in TOKENS},
        "pytorch": {str(t): medians[f"PyTorch's products of {t}"] / floor for t in TOKENS}, "times_s": {**step, **seconds},
    }  # fmt: skip


def modelled(weights: int, per_round: float, offered: float, gpu: Device) -> dict[str, float | str]:
    """What counted drafts are worth on a GPU with bfloat16 weights, drafts being free: a bound from its memory and its arithmetic alone.

    weights: numbers that a step multiplies. per_round: tokens that a verification gave. offered: drafts that it checked. A pass takes as
    long as reading the weights or as multiplying them for all its tokens, whichever is longer.

    >>> modelled(1000, 1.5, 2.0, Device("x", bandwidth=2000.0, flops=12000.0))  # 1 s to read; 1/6 s a token to multiply
    {'device': 'x', 'step_ms': 1000.0, 'lossless_over_full': 1.5}
    >>> modelled(1000, 1.5, 2.0, Device("x", bandwidth=2000.0, flops=3000.0))["lossless_over_full"]  # 2/3 s a token: 2 s for three
    0.75
    """
    reads = 2 * weights / gpu.bandwidth

    def seconds(tokens: float) -> float:
        return max(reads, 2 * weights * tokens / gpu.flops)

    return {"device": gpu.name, "step_ms": 1e3 * seconds(1), "lossless_over_full": per_round * seconds(1) / seconds(1 + offered)}


def on_gpus(model: nn.Module, draft: Mapping[str, Any]) -> list[dict[str, float | str]]:
    """`modelled` for some GPUs; draft: the row of the way that drafts, of a run of `decode-lossless`."""
    weights = sum(w.numel() for w in matrices(model))
    return [modelled(weights, draft["tokens_per_round"], draft["drafted"] / draft["rounds"], gpu) for gpu in GPUS]
