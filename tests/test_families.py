"""Every family keeps the same promises: full depth is the model itself, what is counted ran, rows are as if alone, states are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.families.cases import (
    CASES,
    STEPS,
    WRITERS,
    Table,
    alone,
    forced,
    forced_tokens,
    layer_outputs,
    logits,
    made,
    makeup,
    middle,
    model_writes,
    more_rows,
    prompt,
    write,
)

from exitwise import Engine, Trace, families
from exitwise.errors import AttachError, DepthError, FamilyError, KnobError, UnknownName
from exitwise.run.cache import lengths
from exitwise.stack import Family

TABLE = ((4, 2, 4, 3, 1, 1, 2, 4), (1, 3, 2, 4, 4, 2, 1, 3))


def decoder_of(model: Any, family: Family) -> Any:
    return next(s for s in family.stacks_of(model) if s.kind == "decoder")


def test_every_file_is_a_family_with_a_tiny_model_that_it_fits() -> None:
    assert len(families.names()) >= 8
    for name in families.names():
        model, inputs = made(name)
        assert families.of(model)[0] == name
        assert families.load(name).about and len(next(iter(inputs.values()))) == 2


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["never", "mue"])
def test_walking_every_layer_is_the_model_itself(case: str, method: str) -> None:
    model, inputs = made(case)
    before, weights = makeup(model), {k: v.clone() for k, v in model.state_dict().items()}
    want = logits(model, inputs)
    assert want.std() > 0.1 and not torch.equal(want[0], want[1])  # a model that says nothing would agree with everything
    knobs = {"decompose": False} if method == "mue" else {}
    engine = Engine(model, method, **knobs)
    with engine.attached() as session:
        assert torch.equal(logits(model, inputs), want)
    assert all((session.trace.depth[s] == n).all() for s, n in engine.layers.items())
    assert set(session.trace.depth) == set(engine.layers)
    if model_writes(model):
        for beams in (1, 3):
            assert torch.equal(engine.generate(**inputs, max_new_tokens=STEPS, no_repeat_ngram_size=1, num_beams=beams).sequences,
                               write(model, inputs, num_beams=beams).sequences)  # fmt: skip
    assert makeup(model) == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(logits(model, inputs), want)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["static", "random"])
def test_calls_are_those_that_hooks_on_the_layers_count(case: str, method: str) -> None:
    model, inputs = made(case)
    inputs = more_rows(inputs)
    streams = Engine(model, "never").layers
    knobs: dict[str, Any] = {s: 2 if method == "static" else [1.0] * n for s, n in streams.items()}
    engine = Engine(model, method, **knobs)
    calls: dict[str, int] = {}
    rows: dict[str, int] = {}

    def counter(path: str) -> Any:
        def count(module: Any, args: Any, kwargs: Any, out: Any) -> None:
            state = out[0] if isinstance(out, tuple) else out
            calls[path] = calls.get(path, 0) + 1
            rows[path] = rows.get(path, 0) + state.shape[0]

        return count

    for stack in engine.family.stacks_of(model):
        for layer in dict.fromkeys(stack.layers(model)):  # a shared layer once
            layer.register_forward_hook(counter(stack.path), with_kwargs=True)
    with engine.attached() as session:
        logits(model, inputs)
    trace = session.trace
    assert calls == trace.calls and rows == trace.rows
    for stack in engine.family.stacks_of(model):
        assert rows[stack.path] == sum(int(trace.depth[s].sum()) for s in stack.streams)
    found = {int(d) for depth in trace.depth.values() for d in depth.flatten()}
    assert found == {2} if method == "static" else len(found) >= 3


def sure_enough(engine: Engine, inputs: Any, share: float) -> dict[str, float]:
    """Thresholds inside what was measured at full depth: one per stream."""
    tokens = forced_tokens(len(next(iter(inputs.values()))))
    with engine.attached(record=True) as session:
        logits(engine.model, inputs, tokens)
    return {s: middle(v[..., :-1], share) for s, v in session.trace.sureness.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_row_alone_is_the_row_in_a_padded_batch(case: str) -> None:
    model, inputs = made(case)
    inputs = more_rows(inputs, copies=5)
    rows = len(next(iter(inputs.values())))
    engine = Engine(model, "mue")
    engine = engine.with_settings(**sure_enough(engine, inputs, 0.6))
    tokens = forced_tokens(rows)
    with engine.attached() as session:
        together = logits(model, inputs, tokens)
    depth = session.trace.depth
    found = {int(d) for each in depth.values() for d in each.flatten()}
    assert len(found) >= 3 and all(len(each.unique()) >= 2 for each in depth.values()), depth
    strip = case != "blip-question"  # its own `generate` lets the decoder read the question's padding
    for row in range(rows):
        with engine.attached() as session:
            by_itself = logits(model, alone(inputs, row, strip), tokens[row : row + 1])
        assert {s: d[0].tolist() for s, d in session.trace.depth.items()} == {s: d[row].tolist() for s, d in depth.items()}
        # float32 sums over other batch shapes, logits up to 10
        torch.testing.assert_close(by_itself[0], together[row][: len(by_itself[0])], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_higher_threshold_never_leaves_earlier(case: str) -> None:
    model, inputs = made(case)
    inputs = more_rows(inputs)
    engine = Engine(model, "mue", keys_values="run late")  # exact states, so that each token's sureness is the same at any threshold
    tokens = forced_tokens(len(next(iter(inputs.values()))))
    for stream, layers in engine.layers.items():
        last, means = None, []
        for share in (0.0, 0.3, 0.6, 0.9, None):
            threshold = -1.0 if share == 0.0 else 1.0 if share is None else sure_enough(engine, inputs, share)[stream]
            with engine.with_settings(**{stream: threshold}).attached() as session:
                logits(model, inputs, tokens)
            depth = session.trace.depth[stream]
            assert last is None or (depth >= last).all(), (stream, share)
            last = depth
            means.append(float(depth.double().mean()))
        assert means[0] == 1 and means[-1] == layers and len(set(means)) >= 3, (stream, means)


@pytest.mark.parametrize("case", WRITERS)
@pytest.mark.parametrize("policy", ["run late", "recompute"])
def test_late_and_repeated_runs_give_the_states_of_full_depth(case: str, policy: str) -> None:
    model, inputs = made(case)
    family = families.of(model)[1]
    tokens = forced_tokens(2)
    seen = layer_outputs(decoder_of(model, family).layers(model), lambda: write(model, inputs, tokens))
    states = torch.stack([torch.stack([call[:, -1] for call in calls], 1) for calls in seen])  # (layers, rows, steps, width)
    want = torch.stack([torch.stack([states[d - 1, r, t] for t, d in enumerate(row)]) for r, row in enumerate(TABLE)])
    assert family.readout is not None
    with torch.no_grad():
        want = family.readout(model, want)
    engine = Engine(model, forced({"decoder": Table(TABLE)}, policy, decompose=False))
    with engine.attached() as session:
        got = logits(model, inputs, tokens)
    assert session.trace.depth["decoder"].tolist() == [list(row) for row in TABLE]
    assert (got - logits(model, inputs, tokens)).abs().max() > 0.1  # the exits matter
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)  # float32 sums over other shapes


@pytest.mark.parametrize("case", WRITERS)
def test_keys_and_values_are_as_long_as_what_each_layer_has_seen(case: str) -> None:
    model, inputs = made(case)
    engine = Engine(model, forced({"decoder": Table(TABLE)}))
    caches = []
    stack = decoder_of(model, engine.family)
    stack.owner_module(model).register_forward_hook(lambda _m, _a, out: caches.append(out.past_key_values))
    with engine.attached() as session:
        write(model, inputs, forced_tokens(2))
    first = prompt(model, inputs)  # tokens of the first step; one more at each step after it
    want = [[max(t + first for t, d in enumerate(row) if d > layer) if max(row) > layer else 0 for row in TABLE] for layer in range(4)]
    assert lengths(caches[-1]) == want
    own = getattr(caches[-1], "self_attention_cache", caches[-1])
    assert all(own.layers[i].keys.shape[2] >= max(want[i]) for i in range(4))
    if own is not caches[-1]:
        assert all(layer.have == [True, True] for layer in caches[-1].cross_attention_cache.layers)
    assert session.trace.fills[stack.path] > 0


@pytest.mark.parametrize("case", WRITERS)
def test_a_layer_that_nobody_visits_computes_nothing_at_all(case: str) -> None:
    model, inputs = made(case)
    engine = Engine(model, forced({"decoder": Table(((2,), (1,)))}))
    stack, touched, caches = decoder_of(model, engine.family), [], []
    stack.owner_module(model).register_forward_hook(lambda _m, _a, out: caches.append(out.past_key_values))
    for layer in stack.layers(model)[2:]:
        for part in layer.modules():
            part.register_forward_pre_hook(lambda module, _: touched.append(module))
    with engine.attached() as session:
        write(model, inputs)
    assert touched == [] and session.trace.calls[stack.path] > 0
    if not hasattr(caches[-1], "cross_attention_cache"):
        assert [layer.keys.shape[2] > 0 for layer in caches[-1].layers] == [True, True, False, False]
        return
    cross = caches[-1].cross_attention_cache.layers
    assert [layer.store is None for layer in cross] == [False, False, True, True]
    assert cross[1].have == [True, False]  # the second row never came to the second layer


@pytest.mark.parametrize("case", CASES)
def test_an_exception_in_mid_run_leaves_the_model_whole(case: str) -> None:
    model, inputs = made(case)
    want, before = logits(model, inputs), makeup(model)
    engine = Engine(model, "never")
    for stack in engine.family.stacks_of(model):

        def fail(*_: Any) -> None:
            raise RuntimeError("the second layer broke")

        hook = stack.layers(model)[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="second layer broke"), engine.attached():
            logits(model, inputs)
        hook.remove()
        assert makeup(model) == before
        with engine.attached():
            assert torch.equal(logits(model, inputs), want)
    assert torch.equal(logits(model, inputs), want)


def test_a_model_carries_exits_once_at_a_time() -> None:
    model, _ = made("bart")
    engine, before = Engine(model), makeup(model)
    with engine.attached():
        with pytest.raises(AttachError, match="carries exits already"), engine.attached():
            pass
    assert makeup(model) == before


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused_with_a_way_out(case: str) -> None:
    model, inputs = made(case)
    stream, layers = next(iter(Engine(model, "never").layers.items()))
    with (
        pytest.raises(DepthError, match=rf"Depths run 1\.\.{layers}; {layers} means no early exit"),
        Engine(model, "static", **{stream: layers + 1}).attached(),
    ):
        logits(model, inputs)
    with pytest.raises(KnobError, match="outside 1..1000"):
        Engine(model, "static", **{stream: 0})
    with pytest.raises(KnobError, match=r"outside -1\.0\.\.2\.0"):
        Engine(model, "mue", **{stream: 3.0})
    with pytest.raises(UnknownName, match="Did you mean 'schedule'"):
        Engine(model, "mue", shedule="paper")
    with pytest.raises(UnknownName, match="Did you mean 'bart'"):
        families.load("barrt")
    with pytest.raises(FamilyError, match="'nowhere' is missing"):
        from exitwise import Stack

        Stack("nowhere.layers", "encoder", ("text",)).layers(model)


@pytest.mark.parametrize("case", WRITERS)
def test_beams_carry_their_unlike_depths_with_them(case: str) -> None:
    model, inputs = made(case)
    weights = [1.0] * Engine(model, "never").layers["decoder"]
    outs = [
        Engine(model, "random", decoder=weights, keys_values=policy).generate(
            **inputs, max_new_tokens=STEPS, num_beams=3, no_repeat_ngram_size=1
        )
        for policy in ("run late", "recompute")  # both exact, by unlike means: reordered beams must not show
    ]
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    assert torch.equal(outs[0].depth, outs[1].depth) and len(outs[0].depth.unique()) >= 3
    assert not torch.equal(outs[0].sequences, write(model, inputs, num_beams=3).sequences)


def test_without_a_cache_steps_are_still_steps() -> None:
    model, inputs = made("bart")
    table = ((4, 2, 3, 1, 4), (1, 3, 3, 2, 4))
    engine = Engine(model, forced({"decoder": Table(table)}))
    for beams in (1, 2):
        out = engine.generate(**inputs, max_new_tokens=5, use_cache=False, num_beams=beams, no_repeat_ngram_size=1)
        assert out.trace.depth["decoder"].shape == (2 * beams, 5) and out.depth.shape == (2, 5)
    one = engine.generate(**inputs, max_new_tokens=5, use_cache=False, no_repeat_ngram_size=1)
    assert one.depth.tolist() == [list(row) for row in table]
    two = Trace.cat([one.trace, one.trace])
    with engine.attached() as session:
        for _ in range(2):  # a second run of as many rows is not taken for more steps of the first
            model.generate(**inputs, max_new_tokens=5, use_cache=False, no_repeat_ngram_size=1)
    assert session.trace.depth["decoder"].tolist() == two.depth["decoder"].tolist()
    with pytest.raises(KnobError, match="cannot carry the trace"):
        engine.run(**inputs, return_dict=False)


@pytest.mark.parametrize("case", WRITERS)
def test_a_row_that_has_ended_is_not_computed_any_more(case: str) -> None:
    model, inputs = made(case)
    first = prompt(model, inputs)
    free = write(model, inputs).sequences[:, first:].tolist()
    place, end = next((i, t) for i, t in enumerate(free[0]) if 1 <= i < STEPS - 2 and t not in free[1] and t not in free[0][:i])
    if hasattr(model.config, "text_config") and case.startswith("blip"):
        model.config.text_config.sep_token_id = end
    else:
        model.generation_config.eos_token_id = model.config.eos_token_id = end
    engine = Engine(model, "never")
    out = engine.generate(**inputs, max_new_tokens=STEPS, no_repeat_ngram_size=1)
    want = write(model, inputs).sequences
    assert torch.equal(out.sequences, want) and want.shape[1] > place + first + 1
    n = engine.layers["decoder"]
    assert out.depth[0].tolist() == [n] * (place + 1) + [0] * (out.depth.shape[1] - place - 1)
    assert (out.depth[1] == n).all()
