"""States under arbitrary exits: exact where they are said to be exact, the named policy elsewhere, and no row disturbs another."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.families.test_language import by_hand
from tests.lm.parts import CLOSE, LANGUAGE, backbone_of, full_logits, walked, words
from torch import Tensor

from exitwise.errors import CacheError, KnobError
from exitwise.lm.backbone import Backbone
from exitwise.lm.stair import Stair

FIRST = 6  # tokens of a prompt
STEPS = 16


def drawn(rows: int, steps: int = STEPS, seed: int = 0) -> list[list[int]]:
    luck = random.Random(seed)
    return [[luck.randint(1, 4) for _ in range(steps)] for _ in range(rows)]


def rows_of(count: int, steps: int = STEPS) -> list[list[int]]:
    return [words(FIRST + steps, seed + 10) for seed in range(count)]


def at(logits: Tensor, depths: list[int]) -> Tensor:
    """(steps, vocabulary) of the untouched model, each token at its depth."""
    return torch.stack([logits[depth - 1, FIRST + step] for step, depth in enumerate(depths)])


@pytest.mark.parametrize("case", LANGUAGE)
@torch.no_grad()
def test_random_exits_leave_exact_states(case: str) -> None:
    """64 tokens, each to a random depth: its logits are the full model's at that depth, and lengths never rise with the layer."""
    backbone, tokens, luck = backbone_of(case), words(64), random.Random(1)
    want = full_logits(backbone, tokens)
    stair, calls = Stair(backbone, 1), 0
    for place, token in enumerate(tokens):
        depth = luck.randint(1, 4)
        calls += depth
        stair.append([0], [[token]])
        stair.advance([0], depth)
        torch.testing.assert_close(backbone.readout(stair.newest([0]))[0, 0], want[depth - 1, place], **CLOSE)
        lengths = stair.frontier(0)
        assert lengths == sorted(lengths, reverse=True) and lengths[:depth] == [place + 1] * depth
        assert stair.depths[0] == [sum(n > t for n in lengths) for t in range(place + 1)]  # the stair and the depths say the same
    assert backbone.trace.calls == {backbone.stack.path: calls} and calls < 4 * 64
    assert backbone.trace.work[backbone.stack.path] == sum(stair.depths[0])  # every token ran every layer once at most


@pytest.mark.parametrize("policy", ["run late", "recompute"])
@pytest.mark.parametrize("case", ["llama", "gemma", "gpt_neox", "opt"])
@torch.no_grad()
def test_exact_policies_are_exact_for_rows_of_unlike_depth(case: str, policy: str) -> None:
    backbone, tokens, depths = backbone_of(case), rows_of(3), drawn(3)
    got = walked(Stair(backbone, 3, policy), tokens, depths, FIRST)
    for row in range(3):
        torch.testing.assert_close(got[row], at(full_logits(backbone, tokens[row]), depths[row]), **CLOSE)


@pytest.mark.parametrize("case", LANGUAGE)
@torch.no_grad()
def test_propagate_takes_keys_from_the_state_that_left(case: str) -> None:
    backbone, tokens, depths = backbone_of(case), rows_of(4), drawn(4)
    got = walked(Stair(backbone, 4, "propagate"), tokens, depths, FIRST)
    for row in range(4):
        want = hand_steps(backbone, tokens[row], depths[row])
        torch.testing.assert_close(got[row], want, **CLOSE)
        assert (want - at(full_logits(backbone, tokens[row]), depths[row])).abs().max() > 0.01  # or this test would not tell them apart
    assert backbone.trace.fills[backbone.stack.path] > 0


def hand_steps(backbone: Backbone, tokens: list[int], depths: list[int]) -> Tensor:
    """What `propagate` must say: no cache, each layer over all tokens, each of which shows deeper layers the state in which it left."""
    said: Tensor = by_hand(backbone.model, backbone.family, tokens, FIRST, (4, *depths))[1:]
    return said


class Hand:
    """A cache for one token at one layer: what was there before, and what the token brings."""

    def __init__(self, before: list[tuple[Tensor, Tensor]]) -> None:
        self.before, self.brought = before, []  # type: ignore[var-annotated]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.brought = [(keys, values)]
        pairs = [*self.before, (keys, values)]
        return torch.cat([k for k, _ in pairs], 2), torch.cat([v for _, v in pairs], 2)

    def get_seq_length(self, layer: int = 0) -> int:
        return len(self.before)


def copied(backbone: Backbone, tokens: list[int], depths: list[int]) -> Tensor:
    """What `copy` must say, token by token: a layer that a token skipped sees the keys and values of the last layer that it ran."""
    pairs: list[list[tuple[Tensor, Tensor]]] = []  # of each token, those of the layers that it ran
    said = []
    for place, (token, depth) in enumerate(zip(tokens, [4] * FIRST + depths, strict=True)):
        positions = torch.tensor([[place]])
        state = backbone.embed(torch.tensor([[token]]), positions)
        aids = backbone.language.aids(backbone.model, state, positions)
        own: list[tuple[Tensor, Tensor]] = []
        for layer in range(depth):
            cache = Hand([each[min(layer, len(each) - 1)] for each in pairs])
            out = backbone.layers[layer](state, past_key_values=cache, use_cache=True, **aids(layer))
            state = out[0] if isinstance(out, tuple) else out
            own += cache.brought
        pairs.append(own)
        said.append(backbone.readout(state)[0, 0])
    return torch.stack(said[FIRST:])


@pytest.mark.parametrize("case", ["llama", "gpt2"])
@torch.no_grad()
def test_copy_takes_keys_from_the_last_layer_that_ran(case: str) -> None:
    backbone, tokens, depths = backbone_of(case), rows_of(2), drawn(2)
    got = walked(Stair(backbone, 2, "copy"), tokens, depths, FIRST)
    for row in range(2):
        torch.testing.assert_close(got[row], copied(backbone, tokens[row], depths[row]), **CLOSE)
        assert (got[row] - at(full_logits(backbone, tokens[row]), depths[row])).abs().max() > 0.01


@torch.no_grad()
def test_without_a_policy_depths_may_fall_and_never_rise() -> None:
    backbone, tokens = backbone_of(), rows_of(1, 4)
    got = walked(Stair(backbone, 1, "none"), tokens, [[4, 3, 3, 1]], FIRST)
    torch.testing.assert_close(got[0], hand_steps(backbone, tokens[0], [4, 3, 3, 1]), **CLOSE)
    for depths in ([3, 4, 4, 4], [4, 2, 1, 2], [3, 3, 3, 4]):
        with pytest.raises(CacheError, match=r"has not seen tokens \d+\.\.\d+ of row 0.*keys_values='run late'"):
            walked(Stair(backbone_of(), 1, "none"), tokens, [depths], FIRST)
    with pytest.raises(KnobError, match="'holes' is not known here. Allowed: run late, recompute"):
        Stair(backbone, 1, "holes")


@pytest.mark.parametrize("policy", ["run late", "recompute", "propagate", "copy"])
@torch.no_grad()
def test_a_row_is_as_if_alone(policy: str) -> None:
    """Rows of unlike length and depth; the shorter ones lag for so long that they reach past the states of the longest."""
    lengths, depths = (61, 40, 50), [[4] * 12, [1] * 11 + [4], [1, 2, 4] * 4]
    tokens = [words(n + 12, n) for n in lengths]

    def run(rows: list[int]) -> Tensor:
        stair, index = Stair(backbone_of(), len(rows), policy), list(range(len(rows)))
        stair.append(index, [tokens[r][: lengths[r]] for r in rows])
        stair.advance(index, 4)
        said = []
        for step in range(12):
            stair.append(index, [[tokens[r][lengths[r] + step]] for r in rows])
            for layer in range(4):
                going = [i for i in index if depths[rows[i]][step] > layer]
                if going:
                    stair.visit(layer, going)
            said.append(stair.backbone.readout(stair.newest(index))[:, -1])
        return torch.stack(said, 1)

    together = run([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(run([row])[0], together[row], **CLOSE)


@torch.no_grad()
def test_rows_that_miss_equally_many_tokens_are_filled_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows leave after layer 1, one of them for two tokens; then all go deep: one call of a layer for the one, one for the others."""
    backbone, calls, fill = backbone_of(), list[tuple[int, int, int]](), Backbone.fill

    def counted(self: Backbone, layer: int, states: Tensor, *more: Any) -> None:
        calls.append((layer, *states.shape[:2]))
        fill(self, layer, states, *more)

    monkeypatch.setattr(Backbone, "fill", counted)
    depths = [[1, 1, 3]] * 2 + [[4, 1, 3]] * 3
    walked(Stair(backbone, 5, "propagate"), rows_of(5, 3), depths, FIRST)
    assert calls == [(1, 2, 2), (1, 3, 1), (2, 2, 2), (2, 3, 1)]


@torch.no_grad()
def test_what_was_taken_back_was_never_there() -> None:
    backbone, kept, wrong = backbone_of(), words(40), words(100, 9)
    want = full_logits(backbone, kept)
    stair = Stair(backbone, 1)
    stair.append([0], [kept[:20]])
    stair.advance([0], 4)
    for end in (20, 20, 13):  # the last cuts into what was let go: the states of 120 tokens passed through room for 64
        for token in wrong[: 100 if end == 13 else 5]:
            stair.append([0], [[token]])
            stair.advance([0], 4 if end == 13 else 2)
        stair.crop(0, end)
        assert stair.length(0) == end == len(stair.depths[0]) and max(stair.frontier(0)) == end
    assert stair.base <= 13
    for place in range(13, 40):
        stair.append([0], [[kept[place]]])
        stair.advance([0], 4)
        torch.testing.assert_close(backbone.readout(stair.newest([0]))[0, 0], want[3, place], **CLOSE)


@torch.no_grad()
def test_rows_that_stay_are_numbered_anew() -> None:
    backbone, tokens, depths = backbone_of(), rows_of(3), drawn(3)
    stair = Stair(backbone, 3)
    got = walked(stair, tokens, depths, FIRST)
    stair.keep([2, 0])
    more = words(2, 77)
    stair.append([0, 1], [[more[0]], [more[1]]])
    stair.advance([0, 1], 4)
    said = backbone.readout(stair.newest([0, 1]))[:, 0]
    assert stair.rows == 2 and [stair.length(r) for r in (0, 1)] == [FIRST + STEPS + 1] * 2 and got.shape[0] == 3
    for i, row in enumerate((2, 0)):
        torch.testing.assert_close(said[i], full_logits(backbone, [*tokens[row], more[i]])[3, -1], **CLOSE)


@torch.no_grad()
def test_states_are_let_go() -> None:
    stair, sizes = Stair(backbone_of(), 1), []
    for token in words(400):
        stair.append([0], [[token]])
        stair.advance([0], 4)
        assert stair.states is not None
        sizes.append(stair.states.shape[1])
    assert max(sizes) <= 128 and stair.base > 200


@torch.no_grad()
def test_who_watches_sees_every_token_that_came() -> None:
    """Rows that bring three tokens are watched with three states at every layer, not with the last alone; one token with one."""
    backbone, stair = backbone_of(), Stair(backbone_of(), 2)
    tokens = [words(3, 1), words(3, 2)]
    seen: list[Tensor] = []

    def watch(layer: int, states: Tensor) -> list[int]:
        seen.append(states.clone())
        return [0, 1]

    for new in (tokens, [[7], [8]]):
        stair.append([0, 1], new)
        stair.advance([0, 1], 4, watch=watch)
    assert [states.shape[1] for states in seen] == [3] * 4 + [1] * 4
    want = torch.stack([full_logits(backbone, row)[3] for row in tokens])
    torch.testing.assert_close(backbone.readout(seen[3]), want, **CLOSE)
