"""The loop gives the model's own text: at full depth, by drafts of any kind, in batches of unlike length, and through interrupts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.families.cases import made, makeup
from tests.lm.parts import LANGUAGE, batch, one
from tests.lm.test_asked import Letters
from tests.methods.test_language import exits_for
from tests.methods.test_tuned_exits import tuned
from torch import Tensor
from transformers import TextStreamer

from exitwise import Engine
from exitwise.errors import KnobError
from exitwise.lm import loop as loop_room
from exitwise.lm.backbone import Backbone

MIXED = (9, 3, 6, 1)


def plain(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    out: Tensor = model.generate(**inputs, do_sample=False, **more)
    return out


def an_end(model: Any, inputs: dict[str, Tensor], tokens: int = 12) -> int:
    """A token at which the rows end at different steps."""
    new = plain(model, inputs, max_new_tokens=tokens)[:, inputs["input_ids"].shape[1] :].tolist()
    firsts = {t: [row.index(t) if t in row else tokens for row in new] for row in new for t in row}
    return max(firsts, key=lambda t: (len(set(firsts[t])), min(firsts[t]) > 0, -t))


@pytest.mark.parametrize("case", LANGUAGE)
def test_full_depth_is_generate(case: str) -> None:
    model, _ = made(case)
    inputs, engine = batch(*MIXED), Engine(model, "never")
    end = an_end(model, inputs)
    for more in ({}, {"eos_token_id": end}, {"eos_token_id": end, "min_new_tokens": 10, "repetition_penalty": 1.3}):
        want = plain(model, inputs, max_new_tokens=12, **more)
        out = engine.generate(**inputs, max_new_tokens=12, **more)
        assert torch.equal(out.sequences, want), more
        assert out.depth is not None and out.depth.shape[1] == want.shape[1] - inputs["input_ids"].shape[1]
        real = [len(r) for r in out.drafts.tokens]
        assert [(row > 0).sum().item() for row in out.depth] == real and set(out.depth.flatten().tolist()) <= {0, 4}
        assert not more or len(set(real)) > 1 or "min_new_tokens" in more  # rows end at different steps


@pytest.mark.parametrize("method, knobs", [("mue", {"decoder": 0.75}), ("calm", {"measure": "saturation", "decoder": 0.75})])
def test_a_row_leaves_where_it_leaves_alone(method: str, knobs: dict[str, Any]) -> None:
    """A rule that compares states sees the same two whether a row is alone or not; alone, its first state once was a view of the second."""
    model, _ = made("llama")
    inputs, engine = batch(*MIXED), Engine(model, method, **knobs)
    together = engine.generate(**inputs, max_new_tokens=12)
    assert len(set(together.depth.flatten().tolist())) > 2
    for row in range(len(MIXED)):
        alone = engine.generate(**one(inputs, row), max_new_tokens=12)
        assert alone.drafts.tokens[0] == together.drafts.tokens[row] and alone.depth[0].tolist() == together.depth[row].tolist()


SETTINGS: list[dict[str, Any]] = [
    {"depth": 1, "drafts": 1},
    {"depth": 2, "drafts": 4},
    {"depth": 3, "drafts": 6, "sure": 0.3},
    {"depth": 2, "drafts": 6, "sure": 0.9, "words": 40},
    {"depth": 1, "drafts": 3, "lookup": 1},
    {"depth": 2, "drafts": 5, "lookup": 2, "words": 60, "sure": 0.2},
    {"depth": 3, "drafts": 2, "words": 1},
]


@pytest.mark.parametrize("case", LANGUAGE)
def test_drafts_change_nothing(case: str) -> None:
    """At batch 1 and 4, with ends, a penalty and pads in between; every setting on one model, two on the others."""
    model, _ = made(case)
    inputs = batch(*MIXED)
    more = {"eos_token_id": an_end(model, inputs), "max_new_tokens": 16}
    wants = [(rows, plain(model, rows, **more)) for rows in (inputs, one(inputs, 0))]
    for knobs in SETTINGS if case == "llama" else SETTINGS[4:6]:
        if case in ("phi", "opt-projected"):
            knobs = {k: v for k, v in knobs.items() if k != "words"}  # no part of these heads can be read alone
        engine = Engine(model, "layerskip", **knobs)
        for rows, want in wants:
            assert torch.equal(engine.generate(**rows, **more).sequences, want)
    penalty = {"repetition_penalty": 1.5, "min_new_tokens": 15, **more}
    out = Engine(model, "layerskip", depth=2, drafts=4).generate(**inputs, **penalty)
    assert torch.equal(out.sequences, plain(model, inputs, **penalty))


@pytest.mark.parametrize("method", ["never", "layerskip"])
def test_stop_strings_end_rows_as_in_generate(method: str) -> None:
    model, _ = made("llama")
    inputs, knobs = batch(*MIXED), {"depth": 2} if method == "layerskip" else {}
    text = plain(model, inputs, max_new_tokens=12)[0, -6:-4].tolist()
    more: dict[str, Any] = {
        "stop_strings": ["".join(chr(97 + t) for t in text)],
        "tokenizer": Letters(),
        "max_new_tokens": 12,
        "eos_token_id": 1,
    }  # with an end, `generate` pads
    want = plain(model, inputs, **more)
    out = Engine(model, method, **knobs).generate(**inputs, **more)
    assert torch.equal(out.sequences, want) and len({len(t) for t in out.drafts.tokens}) > 1


def counted(model: Any) -> list[int]:
    """Calls of each layer, as hooks count them."""
    calls = [0] * 4
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    return calls


def test_rounds_of_drafts_call_the_deep_layers_once_each() -> None:
    """Hooks on the layers count what the trace claims: layers above the draft run once a round and once for the prompt."""
    for rows in (batch(7), batch(*MIXED)):
        model, _ = made("llama")
        calls = counted(model)
        told = [0] * len(rows["input_ids"])
        out = Engine(model, "layerskip", depth=2, drafts=3).generate(
            **rows, max_new_tokens=25, on_tokens=lambda row, tokens, told=told: told.__setitem__(row, told[row] + 1)
        )
        assert calls[3] == max(told)  # once for the prompt and once a round, however many rows there are
        assert sum(calls) == out.trace.calls["model.layers"] and calls[0] == calls[1] and calls[2] == calls[3]
        if len(rows["input_ids"]) == 1:
            assert calls[3] == out.drafts.rounds + 1 and calls[0] == out.drafts.drafted + out.drafts.rounds + 1
            assert out.trace.head_calls == out.drafts.drafted + out.drafts.rounds + 1
        assert out.drafts.accepted == sum(out.drafts.per_round) <= out.drafts.drafted
        assert sum(len(t) for t in out.drafts.tokens) == out.drafts.accepted + out.drafts.rounds + len(rows["input_ids"])
        calls[:] = [0] * 4
        out = Engine(model, "never").generate(**rows, max_new_tokens=25)
        assert calls == [25] * 4 and out.trace.calls == {"model.layers": 100} and out.trace.head_calls == 25


def test_no_more_is_drafted_than_may_be_written() -> None:
    """The model's own token must still fit: of 2 new tokens none is drafted, and a prompt at the end of the context does not pass it."""
    model, _ = made("gpt2")  # positions beyond its context have no embedding
    engine = Engine(model, "layerskip", depth=2, drafts=6)
    for most, drafted in ((2, 0), (3, 1)):
        assert engine.generate(**batch(256 - most), max_new_tokens=most).drafts.drafted == drafted


def test_a_surer_draft_is_shorter() -> None:
    model, _ = made("llama")
    drafted = [Engine(model, "layerskip", depth=3, sure=s).generate(**batch(7), max_new_tokens=30).drafts for s in (0.0, 0.5, 1.0)]
    per_round = [d.drafted / d.rounds for d in drafted]
    assert per_round == sorted(per_round, reverse=True) and per_round[0] > 3
    assert drafted[2].drafted <= drafted[2].rounds  # one token each: the unsure one is verified all the same


@pytest.mark.parametrize(
    "method, knobs", [("never", {}), ("layerskip", {"depth": 2}), ("soft", {"every": 1, "minimum": 1, "decoder": 0.5})]
)
def test_samples_repeat_with_their_seed(method: str, knobs: dict[str, Any]) -> None:
    model, _ = made("llama")
    engine, more = Engine(model, method, **knobs), {"do_sample": True, "temperature": 1.5, "max_new_tokens": 15}
    said = [engine.generate(**batch(*MIXED), seed=seed, **more).sequences for seed in (3, 3, 4)]
    assert torch.equal(said[0], said[1]) and not torch.equal(said[0], said[2])
    sharp = engine.generate(**batch(*MIXED), do_sample=True, top_k=1, max_new_tokens=15).sequences
    if method != "soft":
        assert torch.equal(sharp, plain(model, batch(*MIXED), max_new_tokens=15))


def test_drafted_samples_follow_the_models_law() -> None:
    """The second new token after a first one, in those of 1,500 drafted runs that begin with it, against the model's law: chi-square over
    the five likeliest words and the rest below 25, which 5 degrees of freedom pass by chance once in 7,000 (the seeds are fixed)."""
    model, _ = made("llama")
    ids = batch(5)["input_ids"]
    first = int(plain(model, {"input_ids": ids}, max_new_tokens=1)[0, -1])
    with torch.no_grad():
        law = model(torch.cat([ids, torch.tensor([[first]])], 1)).logits[0, -1].softmax(-1)
    engine, seen = Engine(model, "layerskip", depth=1, drafts=1), []
    many = ids.expand(150, -1)
    for seed in range(10):
        out = engine.generate(input_ids=many, do_sample=True, top_k=0, max_new_tokens=3, seed=seed).sequences[:, 5:]
        seen += out[out[:, 0] == first][:, 1].tolist()
    kept = law.topk(5).indices.tolist()
    want = [float(law[k]) for k in kept]
    counts = [seen.count(k) for k in kept]
    parts = zip([*counts, len(seen) - sum(counts)], [*want, 1 - sum(want)])
    assert len(seen) > 150 and sum((n - len(seen) * p) ** 2 / (len(seen) * p) for n, p in parts) < 25


INTERRUPTED: list[tuple[str, dict[str, Any], Any]] = [
    ("never", {}, None),
    ("layerskip", {"depth": 2, "lookup": 1}, None),
    ("kangaroo", {"sure": 0.2}, exits_for),
    ("ngram", {}, None),
    ("soft", {"every": 1, "minimum": 1, "decoder": 0.3}, None),
    ("free", {"depth": 3, "decoder": 0.1, "adaptive": True}, None),
    ("eellm", {"depths": (1, 3), "decoder": 0.15}, tuned),
    ("calm", {"decoder": 0.3}, None),
    ("skipdecode", {"least": 2, "length": 10}, None),
    ("ffnskip", {"decoder": 0.5, "cold": 0, "warm": 0}, None),
]


@pytest.mark.parametrize("method, knobs, trained", INTERRUPTED, ids=[method for method, *_ in INTERRUPTED])
def test_an_interrupt_returns_what_was_written(method: str, knobs: dict[str, Any], trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a callback and from the midst of a layer: the beginning of the text that the engine writes undisturbed, before and after."""
    model, _ = made("llama")
    before, weights, inputs = makeup(model), {k: v.clone() for k, v in model.state_dict().items()}, batch(*MIXED)
    engine = Engine(model, method, exits=None if trained is None else trained(model), **knobs)
    parts = {} if engine.exits is None else {k: v.clone() for k, v in engine.exits.state_dict().items()}
    whole = engine.with_settings().generate(**inputs, max_new_tokens=20)
    assert method in ("soft", "free", "eellm", "calm", "skipdecode", "ffnskip") or torch.equal(
        whole.sequences, plain(model, inputs, max_new_tokens=20)
    )
    seen: list[list[int]] = [[] for _ in MIXED]

    def stop(row: int, tokens: list[int]) -> None:
        seen[row].extend(tokens)
        if len(seen[2]) >= 6 and row == 2:
            raise KeyboardInterrupt

    def beginning(out: Any) -> None:
        assert isinstance(out.drafts.stopped, KeyboardInterrupt)
        for row, tokens in enumerate(out.drafts.tokens):
            assert tokens == whole.drafts.tokens[row][: len(tokens)] and len(tokens) < 20
            assert out.depth[row, : len(tokens)].tolist() == whole.depth[row, : len(tokens)].tolist()

    out = engine.generate(**inputs, max_new_tokens=20, on_tokens=stop)
    beginning(out)
    assert out.drafts.tokens == seen and len(seen[2]) >= 6

    def fail(row: int, tokens: list[int]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.generate(**inputs, max_new_tokens=20, on_tokens=fail)
    with pytest.raises(KeyboardInterrupt):
        raise out.drafts.stopped
    calls, own = [0], Backbone.count

    def count(self: Backbone, states: Tensor) -> None:
        calls[0] += 1
        if calls[0] == 19:
            raise KeyboardInterrupt
        own(self, states)

    with monkeypatch.context() as patched:
        patched.setattr(Backbone, "count", count)
        out = engine.generate(**inputs, max_new_tokens=20)
    beginning(out)
    assert len(out.drafts.tokens[0]) >= 1
    assert makeup(model) == before and all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert engine.exits is None or all(torch.equal(v, parts[k]) for k, v in engine.exits.state_dict().items())
    again = engine.with_settings().generate(**inputs, max_new_tokens=20)
    assert torch.equal(again.sequences, whole.sequences) and torch.equal(again.depth, whole.depth)


def test_an_interrupt_before_the_first_token_returns_the_prompts() -> None:
    model, _ = made("llama")

    def stop(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    model.model.layers[2].register_forward_pre_hook(stop)
    out = Engine(model, "never").generate(**batch(4, 2), max_new_tokens=5)
    assert torch.equal(out.sequences, batch(4, 2)["input_ids"]) and out.depth.shape == (2, 0) and out.drafts.stopped is not None


class Spy(TextStreamer):
    """A streamer that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")


def test_a_streamer_gets_what_generate_gives_it() -> None:
    model, _ = made("llama")
    for method, knobs in (("never", {}), ("layerskip", {"depth": 2})):
        spy, heard = Spy(), []
        out = Engine(model, method, **knobs).generate(
            **batch(5), max_new_tokens=8, streamer=spy, on_tokens=lambda row, tokens, heard=heard: heard.extend(tokens)
        )
        assert spy.calls[0] == batch(5)["input_ids"].tolist() and spy.calls[-1] == "end"
        assert [t for call in spy.calls[1:-1] for t in call] == out.sequences[0, 5:].tolist() == heard


def test_a_long_batch_is_as_each_row_alone_and_holds_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 tokens, 8 rows of unlike length that end at different steps; the window of states stays below two blocks and the rows'
    difference in length."""
    model, _ = made("llama")
    model.config.max_position_embeddings = 1024
    lengths = [random.Random(0).randint(1, 60) for _ in range(8)]
    inputs, widths, own = batch(*lengths), [], loop_room.Loop._take

    def noted(self: Any, *args: Any) -> None:
        own(self, *args)
        widths.append(self.stair.states.shape[1])

    monkeypatch.setattr(loop_room.Loop, "_take", noted)
    more = {"max_new_tokens": 300, "eos_token_id": 13, "pad_token_id": 0}
    out = Engine(model, "never").generate(**inputs, **more)
    assert max(widths) <= 2 * (max(lengths) + 64) and len(widths) == max(len(t) for t in out.drafts.tokens) > 100
    for row in range(8):
        alone = Engine(model, "never").generate(**one(inputs, row), **more)
        assert alone.drafts.tokens[0] == out.drafts.tokens[row]


def test_policies_of_the_other_walk_are_refused_in_words() -> None:
    model, _ = made("llama")
    with pytest.raises(KnobError, match="keys_values='holes' is not known here"):
        Engine(model, "static", decoder=2, keys_values="holes").generate(**batch(4), max_new_tokens=3)
