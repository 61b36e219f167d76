"""Drafters: where they stand in their rows, what they hold, and the text as its own draft."""

from __future__ import annotations

import random

import pytest
import torch
from tests.lm.parts import CLOSE, backbone_of, words

from exitwise.lm.adapter import Adapter, AdapterConfig
from exitwise.lm.drafting import AdapterHead, certainty
from exitwise.lm.heads import head_of, normed
from exitwise.lm.ngrams import Grams
from exitwise.lm.stair import Stair


@pytest.mark.parametrize("ids, most, want", [
    ([1, 2, 3, 9, 1, 2], 3, [3, 9, 1]),
    ([1, 2, 3, 9, 1, 2], 1, [3]),
    ([1, 2, 7, 5, 1, 2, 8, 4, 1, 2], 2, [8, 4]),         # the latest place counts
    ([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 1, [7]),         # but a longer match goes before it
    ([1, 2, 3, 4], 3, []),                               # nothing repeats
    ([4, 4, 4, 4], 5, [4, 4, 4, 4, 4]),                  # a draft goes on from its own words, past the text's end
    ([2, 5, 2], 3, []),                                  # one token is too little
    ([], 3, []),
])  # fmt: skip
def test_what_followed_last_time(ids: list[int], most: int, want: list[int]) -> None:
    assert Grams(1, least=2).offer(0, ids, most) == want


def test_certainty_is_the_greatest_probability() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)) * 30
    torch.testing.assert_close(certainty(logits), logits.softmax(-1).amax(-1))


@pytest.mark.parametrize("ffn", [0, 24])
@torch.no_grad()
def test_an_adapter_drafts_from_the_states_of_all_tokens_before(ffn: int) -> None:
    """Rows of unlike length that draft, are taken back to random lengths, and leave: each proposal is what the adapter says of the whole
    row at once, and it never holds more tokens than the row has."""
    torch.manual_seed(5)
    backbone, luck = backbone_of(), random.Random(3)
    adapter = Adapter(AdapterConfig(32, 4, 2, ffn=ffn, depth=2)).eval()
    for value in adapter.parameters():
        value.uniform_(-0.5, 0.5)
    head = head_of(normed(backbone)[1], None)
    stair, drafter, rows = Stair(backbone, 3), AdapterHead(adapter, 2, head, 3), [0, 1, 2]
    stair.append(rows, [words(n, n) for n in (9, 4, 6)])
    carried = 0
    for turn in range(12):
        if turn == 6:
            stair.keep([2, 0])
            drafter.keep([2, 0])
            rows = [0, 1]
        known = [stair.length(r) for r in rows]
        for _ in range(luck.randint(1, 4)):
            going = sorted(luck.sample(rows, luck.randint(1, len(rows))))
            stair.advance(going, 2)
            drafter.see(stair, going)
            carried += max(len(drafter.waiting[r]) for r in going) > 1
            got = drafter.propose(stair, going)
            for i, row in enumerate(going):
                torch.testing.assert_close(got[i], slow(backbone, adapter, head, stair.ids[row]), **CLOSE)
                assert drafter.have[row] == stair.length(row) and not drafter.waiting[row]
            stair.append(going, [[luck.randint(5, 90)] for _ in going])
        stair.advance(rows, 2)
        drafter.see(stair, rows)
        stair.advance(rows, 4, 2)
        for row in rows:
            length = luck.randint(known[row], stair.length(row))
            stair.crop(row, length)
            drafter.crop(row, length)
            assert drafter.have[row] + len(drafter.waiting[row]) == length == drafter.seen[row]
        stair.append(rows, [[luck.randint(5, 90)] for _ in rows])
    assert carried > 5  # states that waited for the adapter, as the last drafted token's do


def slow(backbone, adapter, head, ids):  # type: ignore[no-untyped-def]
    """What the adapter says after a row's last token, from the untouched model's states, without a store."""
    states = backbone.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2]
    return head(adapter(states, torch.arange(len(ids))[None])[0])[0, -1]
