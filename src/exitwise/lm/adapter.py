"""The adapter that makes a drafter of a model's first layers: one attention layer between a shallow state and the model's own frozen head.

Liu et al. 2024, Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting (arXiv:2404.18911): norm_out(x +
attention(norm_in(x))), with keys and values of its own and no feed-forward net. `ffn` adds one, which is a departure from the paper. The
head is never part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, KnobError
from .lean import attend
from .store import Span, Store

WEIGHTS, ABOUT = "adapter.safetensors", "adapter.json"
SHORTLIST = "shortlist"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is made of.

    width: of a state. heads, kv_heads: of the attention; kv_heads divides heads. head_width: 0 takes width / heads. rope_theta, eps: of the
    rotary positions and the norms, best those of the model. ffn: hidden width of a gated feed-forward net after the attention; 0 has none,
    as in the paper. depth: layers of the model that run before it; 0 where that is not told.
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int = 0
    rope_theta: float = 10_000.0
    eps: float = 1e-6
    ffn: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "kv_heads"):
            if getattr(self, name) < 1:
                raise KnobError(f"{name} is {getattr(self, name)}, but must be 1 or more.")
        if self.heads % self.kv_heads:
            raise KnobError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}. Give a divisor, or as many as heads.")
        if not self.head_width and self.width % self.heads:
            raise KnobError(f"width={self.width} is not a multiple of heads={self.heads}. Give head_width, or other heads.")
        if self.size % 2:
            raise KnobError(f"head_width is {self.size}, but rotary positions need an even one.")
        if self.ffn < 0 or self.depth < 0:
            raise KnobError(f"ffn={self.ffn} and depth={self.depth} must not be below 0.")

    @property
    def size(self) -> int:
        """The width of one head."""
        return self.head_width or self.width // self.heads

    @classmethod
    def of(cls, model_config: Any, depth: int, ffn: int = 0) -> AdapterConfig:
        """An adapter as wide as a model's layers, with as many heads and keys of its own for each (the paper's), after `depth` layers."""
        rope = getattr(model_config, "rope_parameters", None) or {}
        theta = rope.get("rope_theta") or getattr(model_config, "rope_theta", None) or cls.rope_theta
        heads = model_config.num_attention_heads
        return cls(
            model_config.hidden_size, heads, heads, getattr(model_config, "head_dim", None) or 0, float(theta),
            float(getattr(model_config, "rms_norm_eps", cls.eps)), ffn, depth,
        )  # fmt: skip


class Adapter(nn.Module):
    """States of a shallow depth in, states for the model's own head out: its final norm is the adapter's last, so the model's is not
    applied."""

    inverse: Tensor

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config, width, size = config, config.width, config.size
        self.norm_in, self.norm_out = nn.RMSNorm(width, config.eps), nn.RMSNorm(width, config.eps)
        self.q = nn.Linear(width, config.heads * size, bias=False)
        self.k, self.v = (nn.Linear(width, config.kv_heads * size, bias=False) for _ in range(2))
        self.o = nn.Linear(config.heads * size, width, bias=False)
        if config.ffn:
            self.norm_ffn = nn.RMSNorm(width, config.eps)
            self.gate, self.up = (nn.Linear(width, config.ffn, bias=False) for _ in range(2))
            self.down = nn.Linear(config.ffn, width, bias=False)
        self.register_buffer("inverse", config.rope_theta ** (-torch.arange(0, size, 2).float() / size), persistent=False)

    def forward(
        self, states: Tensor, positions: Tensor, keys: Tensor | None = None, values: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """states (rows, tokens, width) after `depth` layers, positions (rows, tokens) whole numbers -> (states, keys, values).

        keys, values (rows, kv_heads, past, head width) of the tokens before, or None where there are none; what is returned holds these and
        the new. Tokens see the past and, among themselves, what is not later. mask (rows, 1 or tokens, past + tokens): true where a token
        may be seen besides; for rows that are padded. The returned states go to the head as they are.
        """
        x = self.norm_in(states)
        cos, sin = self._rotary(positions, x.dtype)
        query = _turned(self._split(self.q(x)), cos, sin)
        new_keys, new_values = _turned(self._split(self.k(x)), cos, sin), self._split(self.v(x))
        keys = new_keys if keys is None else torch.cat((keys, new_keys), 2)
        values = new_values if values is None else torch.cat((values, new_values), 2)
        return self._out(states, self._attended(query, keys, values, mask)), keys, values

    def step(self, states: Tensor, span: Span, store: Store) -> Tensor:
        """`forward` in decoding: (rows, tokens, width) states of the span's tokens; their keys and values go to the store, where the past
        is."""
        x = self.norm_in(states)
        cos, sin = self._rotary(span.positions, x.dtype)
        store.write(span, _turned(self._split(self.k(x)), cos, sin), self._split(self.v(x)))
        keys, values = store.read(span)
        out = attend(_turned(self._split(self.q(x)), cos, sin), keys, values, span.mask(x.dtype), self.config.size**-0.5)
        return self._out(states, out)

    def _out(self, states: Tensor, attended: Tensor) -> Tensor:
        """What follows attention (rows, heads, tokens, head width)."""
        x = states + self.o(attended.transpose(1, 2).reshape(*states.shape[:2], -1))
        if self.config.ffn:
            y = self.norm_ffn(x)
            x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        out: Tensor = self.norm_out(x)
        return out

    def _split(self, joined: Tensor) -> Tensor:
        return joined.view(*joined.shape[:-1], -1, self.config.size).transpose(1, 2)  # (rows, heads, tokens, size)

    def _rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions[:, None, :, None].float() * torch.cat((self.inverse, self.inverse))  # (rows, 1, tokens, size)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Causal attention; heads that share keys are asked as further tokens where there is one token, and nothing is copied."""
        tokens, seen = query.shape[2], keys.shape[2]
        group = self.config.heads // self.config.kv_heads
        if tokens == 1 and mask is None:
            if group > 1:
                query = query.reshape(query.shape[0], -1, group, self.config.size)
            found = F.scaled_dot_product_attention(query, keys, values)
            return found.reshape(found.shape[0], self.config.heads, 1, self.config.size)
        if group > 1:
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        if mask is None and tokens == seen:
            return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
        allowed = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(seen - tokens)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed if mask is None else (allowed & mask)[:, None])


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves of a head paired as in Llama."""
    low, high = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-high, low), -1) * sin


def save_adapter(adapter: Adapter, folder: Path, shortlist: Tensor | None = None, about: Mapping[str, Any] | None = None) -> None:
    """Writes `folder`/adapter.safetensors and adapter.json, each replaced in one move.

    shortlist: (words,) int64 token numbers that drafting reads out; kept beside the weights. about: whatever else is worth keeping, as
    JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    if shortlist is not None:
        weights[SHORTLIST] = shortlist.long().cpu().contiguous()
    part = folder / f"{WEIGHTS}.part"
    save_file(weights, part)
    text = json.dumps({"config": asdict(adapter.config), "about": dict(about or {})}, indent=1)
    (folder / f"{ABOUT}.part").write_text(text + "\n", encoding="utf-8")
    part.replace(folder / WEIGHTS)
    (folder / f"{ABOUT}.part").replace(folder / ABOUT)


@dataclass(frozen=True)
class Loaded:
    """An adapter as it was saved. shortlist: (words,) int64, or None where the whole vocabulary is read out."""

    adapter: Adapter
    shortlist: Tensor | None
    about: Mapping[str, Any]


def load_adapter(folder: Path, dtype: torch.dtype = torch.float32) -> Loaded:
    """Reads what `save_adapter` wrote, in evaluation mode. Raises CheckpointError where it is not there, damaged, or of another kind."""
    try:
        told = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        known = {field.name for field in fields(AdapterConfig)}
        if strange := sorted(set(told["config"]) - known):
            raise CheckpointError(f"{folder / ABOUT} has unknown settings {strange}. Allowed: {', '.join(sorted(known))}.")
        adapter = Adapter(AdapterConfig(**told["config"]))
        weights = load_file(folder / WEIGHTS)
        shortlist = weights.pop(SHORTLIST, None)
        adapter.load_state_dict(weights)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is not there. Give the folder that the training wrote: {WEIGHTS} and {ABOUT}.") from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the adapter in {folder} is damaged or of another kind ({error}). Train it again.") from None
    return Loaded(adapter.to(dtype).eval(), shortlist, told.get("about", {}))
