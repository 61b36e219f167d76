"""The adapter's training: the loss against the full model's law, what it would accept, and batches that a resumed run sees again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from written import Batch, Row, batch, order

from exitwise.lm.adapter import Adapter, AdapterConfig
from exitwise.train.language import accepted_at_once, soft_cross_entropy


def begin(model: Any, config: AdapterConfig, copied: bool) -> Adapter:
    """An adapter with small random weights and a share of the gains of the model's last norm, so that its first answers are not sure of
    themselves; or (copied) as the model's layer after `depth`."""
    adapter, layer = Adapter(config), model.model.layers[config.depth]
    if not copied:
        with torch.no_grad():
            adapter.norm_out.weight.copy_(model.model.norm.weight / 4)
        return adapter
    attention = layer.self_attn
    taken = {"norm_in": layer.input_layernorm, "q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj}
    if config.ffn:
        mlp = layer.mlp
        taken |= {"norm_ffn": layer.post_attention_layernorm, "gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    with torch.no_grad():
        for name, source in (taken | {"norm_out": model.model.norm}).items():
            getattr(adapter, name).weight.copy_(source.weight)
    return adapter


class Drafting(nn.Module):
    """An adapter with the frozen rows of the head that it reads out; only the adapter is trained and saved."""

    def __init__(self, adapter: Adapter, head: Tensor) -> None:
        super().__init__()
        self.adapter, self.head = adapter, [head]  # in a list: neither a parameter nor saved

    def logits(self, given: Batch) -> Tensor:
        """(n, words) at the batch's places."""
        positions = torch.arange(given.states.shape[1])[None].expand(len(given.states), -1)
        states, _, _ = self.adapter(given.states, positions)
        return states[given.at[0], given.at[1]] @ self.head[0].T


def objective(model: Any, given: Batch) -> Mapping[str, Tensor]:
    """Soft cross-entropy where the full model's own word can be drafted at all, and the share of words hit, those outside the list
    missed."""
    logits = model.logits(given)
    inside = given.own >= 0
    loss = soft_cross_entropy(logits[inside], given.numbers[inside], given.shares[inside])
    return {"loss": loss, "hit": (logits.argmax(-1) == given.own).float().mean()}


@torch.no_grad()
def judge(model: Any, rows: Sequence[Row], listed: Tensor, drafted: int = 6) -> dict[str, float]:
    """Over answers held out: loss, share of words hit (in all, by kind), hits among words of the list, tokens that a round yields."""
    total = hits = covered = loss = 0.0
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    rounds = 0.0
    for at in range(0, len(rows), 8):
        part = rows[at : at + 8]
        given = batch(part, listed)
        logits = model.logits(given)
        hit, inside = logits.argmax(-1) == given.own, given.own >= 0
        loss += float(soft_cross_entropy(logits[inside], given.numbers[inside], given.shares[inside])) * int(inside.sum())
        total, hits, covered = total + len(hit), hits + float(hit.sum()), covered + float(inside.sum())
        for row, own in zip(part, hit.split([len(row.last) for row in part])):
            kinds[row.kind][0] += float(own.sum())
            kinds[row.kind][1] += len(own)
            rounds += len(own) / accepted_at_once(own.tolist(), drafted)
    return {
        "loss": loss / covered, "hit": hits / total, "covered": covered / total, f"a_round_of_{drafted}": total / rounds,
        **{f"hit/{kind}": good / of for kind, (good, of) in sorted(kinds.items())},
    }  # fmt: skip


class Epochs:
    """number -> batch, the same for the same number: epoch after epoch, each in its own order."""

    def __init__(self, rows: Sequence[Row], listed: Tensor, size: int, seed: int = 0) -> None:
        self.rows, self.listed, self.size, self.seed = rows, listed, size, seed
        self.epoch, self.batches = -1, list[list[Row]]()
        self.each = -(-len(rows) // size)  # pools are multiples of a batch, so only the last batch can be short

    def __call__(self, number: int) -> Batch:
        epoch, at = divmod(number, self.each)
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, list(order(self.rows, self.size, epoch, self.seed))
        return batch(self.batches[at], self.listed)
