"""FREE's adaptive threshold: chosen from pairs whose laws are known, and from what a running engine shows of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.cases import made, makeup
from tests.lm.parts import backbone_of, batch, full_logits, one

from exitwise import Engine
from exitwise.errors import AttachError, KnobError
from exitwise.methods import free

MIXED = (9, 3, 6)
SWING = (1 / 18) ** 0.5  # standard deviation of beta(2, 1) and beta(1, 2), whose means are 2/3 and 1/3


def told(agreement: free.Agreement, times: int = 20, high: float = 2 / 3, low: float = 1 / 3, swing: float = SWING) -> None:
    """So many pairs of tokens of each kind with exactly these means and deviations."""
    for _ in range(times):
        agreement.see([high - swing, high + swing, low - swing, low + swing], [True, True, False, False])


@pytest.mark.parametrize("zeta, want", [(0.25, 0.3), (0.4, 0.3 + 2 * 0.6 / 9), (0.6, 0.3 + 5 * 0.6 / 9), (0.99, 0.9)])
def test_the_threshold_of_laws_that_are_known(zeta: float, want: float) -> None:
    """Pairs with the moments of beta(2, 1) where exits agree and beta(1, 2) where not: at x the likelihood of agreement is
    2x / (2x + 2(1 - x)) = x, so that the threshold is the first point of 0.3, 0.366.., 0.9 above zeta."""
    agreement = free.Agreement(1.0, zeta, 300)
    assert agreement.begin() == 1.0  # nothing was seen
    told(agreement)
    assert agreement.begin() == pytest.approx(want, abs=1e-12)


def test_laws_of_another_form() -> None:
    """beta(3, 1) and beta(1, 3): x^2 / (x^2 + (1 - x)^2) passes 0.4 at 0.4495, and 0.5 is the first point above."""
    agreement = free.Agreement(0.9, 0.4, 300)
    told(agreement, 20, 0.75, 0.25, (3 / 80) ** 0.5)
    assert agreement.begin() == pytest.approx(0.5, abs=1e-12)


def test_it_waits_for_enough_of_both_kinds_and_ends_after_so_many_choices() -> None:
    agreement = free.Agreement(0.8, 0.4, 2)
    told(agreement, 9)
    assert agreement.begin() == 0.8  # 18 of each kind
    agreement.see([0.5] * 100, [True] * 100)
    assert agreement.begin() == 0.8 and agreement.open
    agreement.see([1 / 3 - SWING, 1 / 3 + SWING], [False, False])
    first = agreement.begin()
    assert first != 0.8 and agreement.open
    told(agreement, 1000)  # what came before hardly counts any more
    assert agreement.begin() == pytest.approx(0.3 + 2 * 0.6 / 9, abs=1e-12) and not agreement.open
    told(agreement, 100_000, 0.75, 0.25, (3 / 80) ** 0.5)
    assert agreement.begin() == pytest.approx(0.3 + 2 * 0.6 / 9, abs=1e-12)


def test_gaps_that_are_all_alike_still_give_a_threshold() -> None:
    agreement = free.Agreement(0.8, 0.4, 2)
    agreement.see([1.0] * 30 + [0.0] * 30, [True] * 30 + [False] * 30)
    assert 0.3 <= agreement.begin() <= 0.9


def pairs(out: Any, lengths: tuple[int, ...], shallow: int) -> tuple[list[float], list[bool]]:
    """By hand, from the untouched model over the text that was written: of each row's tokens up to its last one at full depth, the gap at
    the shallow exit, and whether both exits have one likeliest token."""
    gaps, agree = list[float](), list[bool]()
    for row in range(len(lengths)):
        prompt = one(batch(*lengths), row)["input_ids"][0].tolist()
        logits = full_logits(backbone_of(), [*prompt, *out.drafts.tokens[row]])
        depths = out.depth[row].tolist()
        last = max(step for step, depth in enumerate(depths) if depth == 4)
        for step in range(1, last + 1):
            near, far = logits[shallow - 1, len(prompt) + step - 1], logits[3, len(prompt) + step - 1]
            first, second = near.softmax(-1).topk(2).values.tolist()
            gaps.append(first - second)
            agree.append(int(near.argmax()) == int(far.argmax()))
    return gaps, agree


def told_as(watch: Any, gaps: list[float], agree: list[bool]) -> None:
    """It has seen just these."""
    for kind, moments in ((True, watch.same), (False, watch.other)):
        values = [min(max(g, 1e-4), 1 - 1e-4) for g, a in zip(gaps, agree, strict=True) if a is kind]
        assert moments.count == len(values) > 0
        assert moments.total == pytest.approx(sum(values), abs=1e-3)  # float32 sums in another order: 1e-5 of a probability each


@pytest.mark.parametrize("policy, start", [("run late", 0.1), ("recompute", 0.1), ("run late", 1.0)])
def test_a_running_engine_sees_its_own_tokens_and_moves(policy: str, start: float) -> None:
    """Its moments are those by hand, of tokens that waited and of those that ended a pass; the next run's threshold follows from them."""
    model, _ = made("llama")
    engine = Engine(model, "free", depth=3, decoder=start, adaptive=True, keys_values=policy)
    out = engine.generate(**batch(*MIXED), max_new_tokens=60)
    assert out.drafts.threshold == start and (len(out.depth[:, 1:].unique()) == 2) == (start < 1)
    gaps, agree = pairs(out, MIXED, 3)
    assert len(gaps) > 60 and 20 < sum(agree) < len(agree) - 20
    mine: Any = engine._watch
    told_as(mine, gaps, agree)
    want = free.beta_threshold(gaps, agree)
    again = engine.generate(**batch(*MIXED), max_new_tokens=60)
    assert again.drafts.threshold == pytest.approx(want) and want != start
    fixed = Engine(model, "free", depth=3, decoder=again.drafts.threshold, keys_values=policy).generate(**batch(*MIXED), max_new_tokens=60)
    assert torch.equal(again.sequences, fixed.sequences) and torch.equal(again.depth, fixed.depth)
    assert mine.refits == 299 and mine.same.count + mine.other.count > len(gaps)


def test_rows_that_end_leave_and_the_others_are_still_told_apart() -> None:
    model, _ = made("llama")
    knobs: dict[str, Any] = {"depth": 3, "decoder": 0.1, "adaptive": True}
    free_run = Engine(model, "free", **knobs).generate(**batch(*MIXED), max_new_tokens=40).drafts.tokens
    end = free_run[0][6]  # the first row ends at its seventh token or sooner
    engine = Engine(model, "free", **knobs)
    out = engine.generate(**batch(*MIXED), max_new_tokens=40, eos_token_id=end, pad_token_id=0)
    assert len(out.drafts.tokens[0]) <= 7 and len({len(tokens) for tokens in out.drafts.tokens}) > 1
    told_as(engine._watch, *pairs(out, MIXED, 3))


def test_nothing_leaves_before_there_is_evidence_and_copies_begin_anew() -> None:
    model, _ = made("llama")
    want = model.generate(**batch(*MIXED), max_new_tokens=30, do_sample=False)
    engine = Engine(model, "free", depth=3, adaptive=True)
    first = engine.generate(**batch(*MIXED), max_new_tokens=30)
    assert torch.equal(first.sequences, want) and (first.depth == 4).all()
    engine.generate(**batch(*MIXED), max_new_tokens=30)
    copy = engine.with_settings(zeta=0.5)
    assert engine._watch is not copy._watch and copy.generate(**batch(*MIXED), max_new_tokens=3).drafts.threshold == 1.0


def test_where_nothing_is_learnt_nothing_more_is_read() -> None:
    """With no choice left the head is read as for a fixed threshold; with one, once more for each pass that takes tokens along."""
    model, _ = made("llama")
    knobs: dict[str, Any] = {"depth": 3, "decoder": 0.1}
    calls = [Engine(model, "free", **knobs, **more).generate(**batch(7), max_new_tokens=40) for more in (
        {}, {"adaptive": True, "refits": 0}, {"adaptive": True})]  # fmt: skip
    depths = calls[0].depth[0].tolist()
    passes = sum(now == 4 and before == 3 for before, now in zip(depths, depths[1:]))
    assert passes > 2 and [c.trace.head_calls - calls[0].trace.head_calls for c in calls] == [0, 0, passes]
    assert all(torch.equal(c.sequences, calls[0].sequences) for c in calls)


def test_an_interrupt_keeps_what_was_seen_and_the_model_whole() -> None:
    model, _ = made("llama")
    before, engine = makeup(model), Engine(model, "free", depth=3, decoder=0.1, adaptive=True)
    seen: list[int] = []

    def stop(row: int, tokens: list[int]) -> None:
        seen.extend(tokens)
        if len(seen) == 30:
            raise KeyboardInterrupt

    out = engine.generate(**batch(7), max_new_tokens=60, on_tokens=stop)
    assert isinstance(out.drafts.stopped, KeyboardInterrupt) and out.drafts.tokens == [seen] and makeup(model) == before
    gaps, _ = pairs(out, (7,), 3)
    watch: Any = engine._watch
    assert watch.same.count + watch.other.count == len(gaps) > 10
    whole = engine.generate(**batch(7), max_new_tokens=60)
    assert whole.drafts.stopped is None and whole.drafts.tokens[0][:30] == seen  # too few of one kind to move yet, or the same words


def test_what_is_refused_and_what_is_kept(tmp_path: Path) -> None:
    model, _ = made("llama")
    with pytest.raises(KnobError, match="Allowed: run late, recompute"):
        Engine(model, "free", depth=2, adaptive=True, keys_values="propagate")
    engine = Engine(model, "free", depth=2, adaptive=True, decoder=0.9)
    with pytest.raises(AttachError, match="loop of their own"):
        engine.generate(**batch(4), max_new_tokens=3, num_beams=2)
    engine.save(tmp_path)
    assert Engine.load(tmp_path, model).settings_dict() == engine.settings_dict()
