"""What the tests of the decode loop share: backbones of tiny models, prompts of unlike length, and the untouched model's states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.families.cases import CASES, layer_outputs, made
from torch import Tensor

from exitwise import families, few
from exitwise.lm.backbone import Backbone
from exitwise.lm.stair import Stair

LANGUAGE = [case for case, (family, _) in CASES.items() if (found := families.load(family).language) is not None and found.cross is None]
LEAN = ("gemma", "gemma-1", "llama", "mistral", "qwen", "qwen-3")  # the cases whose layers have the form that `Lean` knows
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # float32 sums in another order: many tokens in one call or one by one; logits of up to 10


def setting(patch: pytest.MonkeyPatch, **variables: str) -> None:
    """Sets environment variables; the kernel is looked for anew."""
    for name, value in variables.items():
        patch.setenv(name, value)
    few.kernel.cache_clear()


def backbone_of(case: str = "llama", lean: bool = True) -> Backbone:
    model, _ = made(case)
    return Backbone(model, families.of(model)[1], lean)


def words(count: int, seed: int = 0) -> list[int]:
    """So many token ids of 5..94, the same every time."""
    return torch.randint(5, 95, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch(*lengths: int) -> dict[str, Tensor]:
    """Prompts of these lengths, padded on the left with 0."""
    rows = [words(n, seed) for seed, n in enumerate(lengths)]
    longest = max(lengths)
    ids = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


def one(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """A row by itself, without pads."""
    real = inputs["attention_mask"][row].bool()
    ids = inputs["input_ids"][row][real][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def full_logits(backbone: Backbone, tokens: Sequence[int]) -> Tensor:
    """(layers, tokens, vocabulary): what the untouched model would say at each depth of each token."""

    def run() -> None:
        backbone.model(input_ids=torch.tensor([list(tokens)]), use_cache=False)

    with torch.no_grad():
        states = torch.cat([calls[0] for calls in layer_outputs(list(backbone.layers), run)])
        assert backbone.family.readout is not None
        return backbone.family.readout(backbone.model, states)


def walked(
    stair: Stair, tokens: Sequence[Sequence[int]], depths: Sequence[Sequence[int]], first: int, seen: Callable[[], Any] = int
) -> Tensor:
    """(rows, steps, vocabulary): the first `first` tokens of each row at full depth, then each token at its own; rows that are at a layer
    run there together, as the loop has it. seen: called after each step."""
    rows, backbone = list(range(len(tokens))), stair.backbone
    stair.append(rows, [row[:first] for row in tokens])
    stair.advance(rows, backbone.depth)
    said = []
    for step in range(len(tokens[0]) - first):
        stair.append(rows, [[row[first + step]] for row in tokens])
        left = _walked_once(stair, rows, [each[step] for each in depths])
        assert torch.equal(stair.newest(rows), left)  # each waits in the state in which it left
        said.append(backbone.readout(stair.newest(rows))[:, -1])
        seen()
    return torch.stack(said, 1)


def _walked_once(stair: Stair, rows: list[int], depths: Sequence[int]) -> Tensor:
    """(rows, 1, width) states in which the newest tokens of these rows leave, each at its depth."""
    left: dict[int, Tensor] = {}

    def watch(layer: int, states: Tensor) -> list[int]:
        going = [row for row in rows if row not in left]
        left.update({row: state.clone() for row, state in zip(going, states, strict=True) if depths[row] == layer})
        return [row for row in going if row not in left]

    stair.advance(rows, stair.backbone.depth, watch=watch)
    return torch.stack([left[row] for row in rows])
