"""Methods for language models: each is the model itself at its 'never', leaves where its paper says, and costs what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.families.cases import made
from tests.families.test_language import seen
from tests.lm.parts import batch, one, words
from torch import Tensor
from transformers import DynamicCache

from exitwise import Engine, Method, families
from exitwise.errors import CacheError, FamilyError, KnobError
from exitwise.lm import loop as loop_room
from exitwise.lm.adapter import Adapter, AdapterConfig
from exitwise.lm.plan import Decoding
from exitwise.methods import free, kangaroo
from exitwise.run.walk import Plan, split_output

MIXED = (9, 3, 6, 1)
MANY = batch(*range(3, 15))


def exits_for(model: Any, depth: int = 2, ffn: int = 0, shortlist: Tensor | None = None) -> Any:
    """An adapter with random weights of a scale at which it says something."""
    torch.manual_seed(4)
    adapter = Adapter(AdapterConfig.of(model.config, depth, ffn))
    with torch.no_grad():
        for value in adapter.parameters():
            value.uniform_(-0.4, 0.4)
    return kangaroo.adapted(adapter, model.config.num_hidden_layers, shortlist)


def engine_of(model: Any, method: str, **knobs: Any) -> Engine:
    return Engine(model, method, exits=exits_for(model) if method == "kangaroo" else None, **knobs)


@pytest.mark.parametrize("case", ["llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize("method", ["soft", "free", "eellm", "skipdecode", "ffnskip", "layerskip", "kangaroo"])
def test_never_is_generate(case: str, method: str) -> None:
    model, _ = made(case)
    inputs, knobs = batch(*MIXED), {"free": {"depth": 2}, "layerskip": {"depth": 2}, "soft": {"every": 1, "minimum": 1}}.get(method, {})
    want = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    out = engine_of(model, method, **knobs).generate(**inputs, max_new_tokens=12)
    assert torch.equal(out.sequences, want) and (out.depth == 4).all()


@pytest.mark.parametrize("method, knobs, allowed", [
    ("soft", {"every": 1, "minimum": 1}, {1, 2, 3, 4}), ("soft", {"every": 2, "minimum": 2}, {2, 4}),
    ("soft", {"every": 1, "minimum": 3, "fall": 0.3}, {3, 4}), ("free", {"depth": 2}, {2, 4}), ("eellm", {"depths": (1, 3)}, {1, 3, 4}),
    ("eellm", {}, {1, 2, 4}),
])  # fmt: skip
def test_a_higher_threshold_never_leaves_earlier(method: str, knobs: dict[str, Any], allowed: set[int]) -> None:
    """The token after the first is judged on the same states at every threshold; later ones follow other texts."""
    model, _ = made("llama")
    last, means, found = None, [], set()
    for threshold in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0):
        depth = Engine(model, method, decoder=threshold, **knobs).generate(**MANY, max_new_tokens=2).depth
        assert depth is not None and (depth[:, 0] == 4).all()  # the prompt runs everything
        assert last is None or (depth >= last).all()
        last, found = depth, found | set(depth[:, 1].tolist())
        means.append(float(depth[:, 1].double().mean()))
    assert means[0] == min(allowed) and means[-1] == 4 and len(set(means)) >= 3 and found <= allowed and len(found) >= 2


def test_each_depth_of_a_sorted_model_has_its_threshold() -> None:
    """0.9 at the least depth, and lower by 0.6 at full depth, in a straight line: 0.9, 0.7, 0.5 at depths 1, 2, 3 of 4."""
    from exitwise.criteria import Step

    rule: Any = Engine(made("llama")[0], "soft", decoder=0.9, fall=0.6, every=1, minimum=1).plan().rules["decoder"]
    for depth, limit in ((1, 0.9), (2, 0.7), (3, 0.5)):
        assert rule.leaves([limit - 1e-3, limit + 1e-3], Step(depth, 4), [0, 1]) == [False, True]


@pytest.mark.parametrize("first, second, want", [((8, 2), (2, 4), 0.633), ((20, 2), (4, 2), 0.833), ((3, 2), (2, 3), 0.433)])
def test_the_beta_thresholds_of_the_specification(first: tuple[int, int], second: tuple[int, int], want: float) -> None:
    rng = np.random.default_rng(0)
    gaps = [*rng.beta(*first, 20_000), *rng.beta(*second, 20_000)]
    agree = [True] * 20_000 + [False] * 20_000
    assert round(free.beta_threshold(gaps, agree), 3) == want
    assert round(free.beta_threshold(gaps[::-1], agree[::-1]), 3) == want
    with pytest.raises(KnobError, match="1 tokens agree and 2 do not"):
        free.beta_threshold([0.1, 0.2, 0.3], [True, False, False])


@pytest.mark.parametrize("method, knobs", [("eellm", {"depths": (1, 2)}), ("free", {"depth": 2}), ("soft", {"every": 1, "minimum": 1})])
def test_recomputing_and_running_late_are_one(method: str, knobs: dict[str, Any]) -> None:
    model, _ = made("llama")
    outs = [Engine(model, method, decoder=0.5, keys_values=p, **knobs).generate(**batch(*MIXED), max_new_tokens=30)
            for p in ("run late", "recompute", "propagate")]  # fmt: skip
    assert torch.equal(outs[0].sequences, outs[1].sequences) and torch.equal(outs[0].depth, outs[1].depth)
    assert len(outs[0].depth.unique()) >= 2 and outs[1].trace.work["model.layers"] > outs[0].trace.work["model.layers"]
    assert outs[2].trace.fills["model.layers"] > 0 and not outs[0].trace.fills


def test_the_depths_of_exits_are_kept(tmp_path: Path) -> None:
    """A knob called `exits` would be taken for trained exits."""
    model, _ = made("llama")
    Engine(model, "eellm", depths=(1, 3), decoder=0.5).save(tmp_path)
    assert tuple(Engine.load(tmp_path, model).settings_dict()["depths"]) == (1, 3)
    with pytest.raises(KnobError, match="Exits .* do not fit"):
        Engine(model, "eellm", depths=(4,))


def test_no_more_tokens_wait_than_allowed() -> None:
    depth = Engine(made("llama")[0], "eellm", decoder=0.0, depths=(1,), pending=4).generate(**batch(5, 3), max_new_tokens=12).depth
    assert depth is not None and [d == 4 for d in depth[0].tolist()] == [step % 4 == 0 for step in range(12)]


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of which the loop takes the likeliest, step by step."""
    out: list[Tensor] = []
    own = loop_room.likeliest
    monkeypatch.setattr(loop_room, "likeliest", lambda logits: (out.append(logits), own(logits))[1])
    return out


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_schedule_with_a_cache_is_the_schedule_as_a_mask(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parallel form: every layer over the whole text, and `where(l in A(t), layer(h), h)` at each token."""
    model, _ = made(case)
    said, engine = noted(monkeypatch), Engine(model, "skipdecode", most=4, least=2, length=10)
    out = engine.generate(**batch(7, 4), max_new_tokens=14)
    route = engine.plan().decoding.route  # type: ignore[union-attr]
    depths = [len(route(step, 4)) for step in range(13)]
    assert depths == sorted(depths, reverse=True) and {2, 3, 4} == set(depths) and out.depth[0, 1:].tolist() == depths
    family = families.of(model)[1]
    (stack,) = family.stacks_of(model)
    for row in range(2):
        prompt = one(batch(7, 4), row)["input_ids"][0].tolist()
        ids = torch.tensor([prompt + out.drafts.tokens[row][:-1]])
        active = torch.tensor([[True] * len(prompt) + [layer in route(step, 4) for step in range(13)] for layer in range(4)])
        with torch.no_grad():
            places = torch.arange(ids.shape[1])[None]
            state = family.language.embed(model, ids, places)
            aids = family.language.aids(model, state, places)
            for index, layer in enumerate(stack.layers(model)):
                after, _ = split_output(layer(state, attention_mask=seen(ids.shape[1], None), **aids(index)))
                state = torch.where(active[index][None, :, None], after, state)
            want = family.readout(model, state[:, len(prompt) :])[0]
        got = torch.stack([logits[row] for logits in said])
        # float32 sums in another order: 1e-5 of the largest logit, which is about 10
        torch.testing.assert_close(got, want, atol=1e-5 * float(want.abs().max()), rtol=0)
    assert out.trace.calls[stack.path] == 4 + sum(depths)


def test_a_schedule_that_rises_is_refused() -> None:
    model, _ = made("llama")
    with pytest.raises(KnobError, match="least=3 and most=2"):
        Engine(model, "skipdecode", most=2, least=3)
    with pytest.raises(KnobError, match="warm=3"):
        Engine(model, "skipdecode", least=2, warm=3)
    rising = Method("none: a test", "rises", lambda settings, layers: Plan(
        decompose=False, policy="none", decoding=Decoding(route=lambda step, layers: range(min(layers, 2 + step)))))  # fmt: skip
    with pytest.raises(CacheError, match="Layer 3 has not seen tokens 5..5 of row 0"):
        Engine(model, rising).generate(**batch(5), max_new_tokens=6)


def skipped_by_hand(model: Any, ids: Tensor, token: int, threshold: float, cold: int) -> tuple[Tensor, int]:
    """(logits, nets left out) of one token after a prompt, from the model's own halves."""
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache)
    state, place = model.model.embed_tokens(torch.tensor([[token]])), torch.tensor([[ids.shape[1]]])
    turned, settled, skipped = model.model.rotary_emb(state, place), False, 0
    for index, layer in enumerate(model.model.layers):
        attended, _ = layer.self_attn(layer.input_layernorm(state), position_embeddings=turned, attention_mask=None, past_key_values=cache)
        state = state + attended
        middle = cold <= index < 4 - cold
        if settled and middle:
            skipped += 1
            continue
        after = state + layer.mlp(layer.post_attention_layernorm(state))
        if middle:
            settled = bool(F.cosine_similarity(state[0, 0], after[0, 0], dim=-1) >= threshold)
        state = after
    return model.lm_head(model.model.norm(state))[0, 0], skipped


def test_nets_are_left_out_as_by_hand_and_more_of_them_at_lower_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made("llama")
    ends: list[list[int]] = []
    own = loop_room.Loop._skipping
    monkeypatch.setattr(loop_room.Loop, "_skipping", lambda self, rows: (own(self, rows), ends.extend(map(self.stair.frontier, rows)))[0])
    said, counts, ids = noted(monkeypatch), [], batch(8)["input_ids"]
    for threshold in (-1.0, 0.3, 0.6, 0.8, 0.9, 0.95, 1.0):
        out = Engine(model, "ffnskip", decoder=threshold, cold=0, warm=0).generate(**batch(8), max_new_tokens=2)
        with torch.no_grad():
            want, skipped = skipped_by_hand(model, ids, out.drafts.tokens[0][0], threshold, 0)
        assert out.drafts.skipped == skipped and out.trace.calls["model.layers"] == 8
        torch.testing.assert_close(said[-1][0], want, atol=3e-5, rtol=1e-5)  # float32 sums in another order, logits up to 10
        counts.append(skipped)
    assert counts == sorted(counts, reverse=True) and counts[0] == 3 and counts[-1] == 0 and len(set(counts)) > 2
    assert all(len(set(frontier)) == 1 for frontier in ends) and ends
    out = Engine(model, "ffnskip", decoder=-1.0, cold=1, warm=3).generate(**batch(8, 2), max_new_tokens=8)
    assert out.drafts.skipped == 2 * 4 * 1  # two rows, four tokens after the warm ones, the second of the two layers between


def test_nets_of_an_unknown_form_cannot_be_left_out() -> None:
    with pytest.raises(FamilyError, match="halves of GPT2Block are not known"):
        Engine(made("gpt2")[0], "ffnskip", decoder=0.5).generate(**batch(4), max_new_tokens=3)
    with pytest.raises(KnobError, match="cold=2 at both ends"):
        Engine(made("llama")[0], "ffnskip", decoder=0.5, cold=2)


@pytest.mark.parametrize("knobs", [{}, {"sure": 0.0, "drafts": 3}, {"sure": 0.9, "drafts": 4, "words": 40}, {"lookup": 1, "sure": 0.2}])
@pytest.mark.parametrize("case", ["llama", "gemma", "gpt2"])
def test_an_adapter_of_any_kind_changes_nothing(case: str, knobs: dict[str, Any]) -> None:
    model, _ = made(case)
    inputs = batch(*MIXED)
    want = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    for depth, ffn, shortlist in ((1, 0, None), (3, 16, torch.tensor([5, 70, 31, 8]))):
        out = Engine(model, "kangaroo", exits=exits_for(model, depth, ffn, shortlist), **knobs).generate(**inputs, max_new_tokens=20)
        assert torch.equal(out.sequences, want)
        assert out.drafts.rounds > 0


def test_an_adapter_that_knows_the_answer_is_believed() -> None:
    """Layers above the draft that add nothing, and an adapter that adds nothing, before the model's own norm: every draft stands."""
    model, _ = made("llama")
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    adapter = Adapter(AdapterConfig.of(model.config, 2))
    with torch.no_grad():
        adapter.o.weight.zero_()
        adapter.norm_out.weight.copy_(model.model.norm.weight)
    engine = Engine(model, "kangaroo", exits=kangaroo.adapted(adapter, 4), sure=0.0, drafts=4)
    out = engine.generate(**batch(6), max_new_tokens=21)
    assert torch.equal(out.sequences, model.generate(**batch(6), max_new_tokens=21, do_sample=False))
    assert (out.drafts.rounds, out.drafts.drafted, out.drafts.accepted) == (4, 16, 16)  # 1 + 4 (4 + 1) tokens
    assert out.trace.calls["model.layers"] == 4 + 4 * (2 * 5 + 2) and out.trace.head_calls == 1 + 16 + 4


def test_an_engine_with_an_adapter_is_kept_whole(tmp_path: Path) -> None:
    model, _ = made("llama")
    shortlist = torch.tensor(sorted(set(words(40))))
    engine = Engine(model, "kangaroo", exits=exits_for(model, 3, 16, shortlist), sure=0.1, drafts=3)
    engine.save(tmp_path)
    loaded = Engine.load(tmp_path, model)
    assert loaded.settings_dict() == engine.settings_dict() and loaded.exits is not None and engine.exits is not None
    assert loaded.exits.parts["adapter"].config == engine.exits.parts["adapter"].config
    state = loaded.exits.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in engine.exits.state_dict().items()) and "parts.words.ids" in state
    runs = [e.generate(**batch(*MIXED), max_new_tokens=20) for e in (engine, loaded)]
    assert torch.equal(runs[0].sequences, runs[1].sequences) and runs[0].drafts.per_round == runs[1].drafts.per_round


def test_an_adapter_that_leaves_nothing_to_verify_is_refused() -> None:
    model, _ = made("llama")
    with pytest.raises(KnobError, match="after 4 layers, and 4 are there"):
        Engine(model, "kangaroo", exits=exits_for(model, 4)).generate(**batch(4), max_new_tokens=3)
    with pytest.raises(KnobError, match="needs trained exits with adapter"):
        Engine(model, "kangaroo")
    with pytest.raises(KnobError, match="depth=4 leaves no layer to verify"):
        Engine(model, "layerskip", depth=4)
