"""A pre-norm layer with rotary positions and a gated feed-forward net, in few operations, on the model's own parameters.

On a CPU, a third of the time of a decoding step of a small model goes to the many small operations around its matrix products. This is the
same arithmetic in fewer of them. It is used only for layers whose output it reproduces (`agrees`) and that carry no hooks; all others are
called as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..few import MOST, Kernel, kernel
from .store import Span, Store

Norm = Callable[[Tensor], Tensor]
FEW, TILE = 8, 16
MOST_NORMED = 64 * 1024  # numbers that one thread norms no slower than PyTorch's several


def norm_of(module: nn.Module | None) -> Norm | None:
    """A root-mean-square norm in few operations, whichever way the module keeps its gain; None if it is another norm."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module is None or not isinstance(weight, Tensor) or not isinstance(eps, float) or getattr(module, "bias", None) is not None:
        return None
    width, held = weight.numel(), weight.detach()
    probe = torch.linspace(-2.0, 3.0, width, dtype=weight.dtype, device=weight.device)[None]
    with torch.no_grad():
        want = module(probe)
        for gain in (held, 1 + held):  # some models keep the gain less one
            ours = _scaled(gain * width**0.5, torch.full((1,), eps * width).to(weight))
            if torch.allclose(ours(probe), want, rtol=1e-5, atol=1e-6):  # float32 in another order
                return ours
    return None


def _scaled(gain: Tensor, floor: Tensor) -> Norm:
    """x gain / sqrt(|x|^2 + floor): with gain and floor times the root of the width and the width, the root-mean-square norm."""
    ours, least = kernel() if Kernel.takes(gain[None]) else None, float(floor)

    def norm(states: Tensor) -> Tensor:
        if ours is not None and states.numel() <= MOST_NORMED:
            return ours.norm(states, gain, least)
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return torch.mul(states, gain).mul_(torch.addcmul(floor, length, length).rsqrt_())

    return norm


def filled_up(states: Tensor) -> Tensor:
    """Flat states (tokens, width), with zeros as further tokens up to a tile where that is faster; on a CPU, else unchanged.

    A product of a matrix and 8 to 15 tokens takes longer than one with 16 (MKL with AVX-512, float32, the net of a layer of 576 x 1536:
    2.3 ms with 16 tokens, 2.5 with 8, 3.5 with 15), so that a batch from which rows leave would become slower.
    """
    if not FEW <= len(states) < TILE or states.device.type != "cpu":
        return states
    return torch.cat((states, states.new_zeros((TILE - len(states), states.shape[1]))))


class Map:
    """A linear map of flat states (tokens, width), on the module's own weight; of few tokens by the kernel, where there is one."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        self.turned = self.weight.t()
        self.kernel: Kernel | None = kernel() if Kernel.takes(self.weight) else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernel is not None and x.shape[0] <= MOST:
            out = self.kernel(x, self.weight)
            return out if self.bias is None else out.add_(self.bias)
        return torch.mm(x, self.turned) if self.bias is None else torch.addmm(self.bias, x, self.turned)

    def onto(self, states: Tensor, x: Tensor) -> Tensor:
        """The states with the map of x added."""
        if self.kernel is not None and x.shape[0] <= MOST:
            out = self.kernel(x, self.weight, states)
        else:
            out = torch.addmm(states, x, self.turned)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True)
class Lean:
    """The parts of one layer. attn_after, ffn_after: norms of what attention and the feed-forward net add, where there are any."""

    q: Map
    k: Map
    v: Map
    o: Map
    gate: Map
    up: Map
    down: Map
    act: Callable[[Tensor], Tensor]
    attn_norm: Norm
    ffn_norm: Norm
    attn_after: Norm | None
    ffn_after: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    width: int
    scale: float
    tangent: bool | None  # how the kernel bends the gate: GELU by the tangent, or SiLU; None: not in one call

    def __call__(self, states: Tensor, span: Span, store: Store, aids: dict[str, Any], mask: Tensor | None, window: int | None) -> Tensor:
        """(rows, tokens, width) after the layer; keys and values go to the store. mask: None where `unmasked`."""
        return self.ffn(self.attention(states, span, store, aids, mask, window))

    def unmasked(self, span: Span) -> bool:
        """Whether attention of this span is the kernel's, which needs no mask."""
        return self.k.kernel is not None and Kernel.looks(span, self.width)

    def attention(self, states: Tensor, span: Span, store: Store, aids: dict[str, Any], mask: Tensor | None, window: int | None) -> Tensor:
        """The states after attention, the residual added."""
        rows, tokens, width = states.shape
        flat = states.reshape(-1, width)
        x = self.attn_norm(flat)
        query, keys = self.q(x).view(rows, tokens, -1, self.width), self.k(x).view(rows, tokens, -1, self.width)
        if self.q_norm is not None and self.k_norm is not None:
            query, keys = self.q_norm(query), self.k_norm(keys)
        value, turn = self.v(x).view(rows, tokens, -1, self.width), aids["rotary"]
        if self.k.kernel is not None and self.unmasked(span):
            out = self.k.kernel.attend((query, keys, value), turn, span, store, window, self.scale)
        else:
            heads, (cos, sin) = query.shape[2], turn
            both = torch.cat((query, keys), 2)
            both = torch.addcmul(both * cos, both.roll(self.width // 2, -1), sin).transpose(1, 2)
            store.write(span, both[:, heads:], value.transpose(1, 2))
            out = attend(both[:, :heads], *store.read(span), mask, self.scale).transpose(1, 2)
        return self._added(flat, self.o, out.reshape(rows * tokens, -1), self.attn_after).view(rows, tokens, width)

    def fill(self, states: Tensor, span: Span, store: Store, aids: dict[str, Any]) -> None:
        """Keys and values alone."""
        rows, tokens, width = states.shape
        x = self.attn_norm(states.reshape(-1, width))
        keys, (cos, sin) = self.k(x).view(rows, tokens, -1, self.width), aids["rotary"]
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        keys = torch.addcmul(keys * cos, keys.roll(self.width // 2, -1), sin)
        store.write(span, keys.transpose(1, 2), self.v(x).view(rows, tokens, -1, self.width).transpose(1, 2))

    def ffn(self, states: Tensor) -> Tensor:
        """The states after the feed-forward net, the residual added."""
        own = states.reshape(-1, states.shape[-1])
        flat = own if self.gate.kernel is not None else filled_up(own)
        out = self._added(flat, self.down, self._middle(self.ffn_norm(flat)), self.ffn_after)
        return (out if flat is own else out[: len(own)]).view(states.shape)

    def _middle(self, x: Tensor) -> Tensor:
        """What the feed-forward net holds between its maps."""
        ours = self.gate.kernel
        if ours is not None and self.tangent is not None and x.shape[0] <= MOST:
            return ours.gated(x, self.gate.weight, self.up.weight, self.tangent)
        return self.act(self.gate(x)).mul_(self.up(x))

    @staticmethod
    def _added(states: Tensor, out: Map, x: Tensor, after: Norm | None) -> Tensor:
        return out.onto(states, x) if after is None else states + after(out(x))


def tangent_of(act: Callable[[Tensor], Tensor]) -> bool | None:
    """Whether an activation is GELU as the tangent approximates it; false for SiLU, None for any other."""
    probe = torch.linspace(-12.0, 12.0, 97)
    with torch.no_grad():
        try:
            found = act(probe)
        except RuntimeError:  # it wants another type, another device
            return None
    for tangent, known in ((False, F.silu(probe)), (True, F.gelu(probe, approximate="tanh"))):
        if torch.allclose(found, known, rtol=1e-5, atol=1e-6):
            return tangent
    return None


def rotary(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (rows, tokens, width of a head) made ready for `Lean`: room for heads, and the sign of the turn in the sine.

    A state turns to x cos + (-second half, first half of x) sin; rolled by half and with the first half of the sine negated, that is one
    multiplication less.
    """
    half = sin.shape[-1] // 2
    return cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), -1)[:, :, None]


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of (rows, heads, tokens, width) over fewer heads of keys: queries that share a head are tokens of it, so nothing is
    repeated."""
    rows, heads, tokens, width = query.shape
    groups = heads // keys.shape[1]
    if groups == 1:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    joined = query.reshape(rows, heads // groups, groups * tokens, width)
    if mask is not None:
        mask = mask[:, :, None].expand(-1, -1, groups, -1, -1).reshape(rows, 1, groups * tokens, mask.shape[-1])
    return F.scaled_dot_product_attention(joined, keys, values, attn_mask=mask, scale=scale).view(rows, heads, tokens, width)


def plain(module: nn.Module) -> bool:
    """Whether nothing listens to the module or stands in its place, nor in what it is made of."""
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in module.modules())


def lean_of(layer: Any) -> Lean | None:
    """The layer's parts, if it has the form and is in float32; None otherwise, and if it trains, is hooked, or has more than plain linear
    maps in it."""
    if layer.training or not plain(layer):
        return None
    attn, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    linears = [getattr(attn, n, None) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linears += [getattr(mlp, n, None) for n in ("gate_proj", "up_proj", "down_proj")]
    maps = [Map(m) for m in linears if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    act, width = getattr(mlp, "act_fn", None), getattr(attn, "head_dim", None)
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    attn_norm = norm_of(getattr(layer, "input_layernorm", None))
    ffn_norm = norm_of(getattr(layer, "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm", None))
    attn_after = norm_of(layer.post_attention_layernorm) if sandwich else None
    ffn_after = norm_of(getattr(layer, "post_feedforward_layernorm", None))
    q_norm, k_norm = norm_of(getattr(attn, "q_norm", None)), norm_of(getattr(attn, "k_norm", None))
    capped = getattr(attn, "attn_logit_softcapping", None) is not None
    strange = capped or (q_norm is None) != (k_norm is None) or (sandwich and (attn_after is None or ffn_after is None))
    if len(maps) < len(linears) or act is None or width is None or attn_norm is None or ffn_norm is None or strange:
        return None
    scale = float(getattr(attn, "scaling", width**-0.5))
    q, k, v, o, gate, up, down = maps
    tangent = tangent_of(act) if gate.bias is None and up.bias is None else None
    return Lean(q, k, v, o, gate, up, down, act, attn_norm, ffn_norm, attn_after, ffn_after, q_norm, k_norm, width, scale, tangent)
