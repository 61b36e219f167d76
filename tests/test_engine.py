"""The waist: what a user does with a model and a method, and what must hold whatever they bring."""

import json
import threading

import pytest
import torch
from transformers import BartForConditionalGeneration

import exitwise
from exitwise import Engine
from exitwise.calibrate.budget import Bar
from exitwise.errors import CacheError, CheckpointError, DepthError, FingerprintError, KnobError, UnknownName
from exitwise.families import bart, ofa
from exitwise.run.cache import lengths


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return ofa.tiny()


def rows_of(inputs):
    return [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(len(inputs["input_ids"]))]


def test_never_is_the_model_itself(pair):
    model, inputs = pair
    for beams in (1, 3):
        wanted = model.generate(**inputs, max_new_tokens=10, num_beams=beams)
        out = Engine(model, "never").generate(**inputs, max_new_tokens=10, num_beams=beams)
        assert torch.equal(out.sequences, wanted)


def test_thresholds_of_one_are_full_depth_and_say_so(pair):
    model, inputs = pair
    out = Engine(model, "mue").generate(**inputs, max_new_tokens=10)
    assert torch.equal(out.sequences, model.generate(**inputs, max_new_tokens=10))
    assert set(out.depth.flatten().tolist()) <= {0, 4}
    assert out.trace.depth["image"].tolist() == [4, 4]


def test_the_head_is_asked_once_a_step(pair):
    model, inputs = pair
    out = Engine(model, "static", decoder=2).generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    assert out.trace.head_calls == 6


def test_cross_keys_of_layers_that_nobody_visits_are_never_made(pair):
    model, inputs = pair
    engine = Engine(model, "static", decoder=2)
    with torch.no_grad(), engine.attached():
        out = model(**inputs, decoder_input_ids=inputs["input_ids"], use_cache=True)
    stores = [layer.store for layer in out.past_key_values.cross_attention_cache.layers]
    assert [s is not None for s in stores] == [True, True, False, False]
    assert lengths(out.past_key_values) == [[7, 7], [7, 7], [0, 0], [0, 0]]


def test_rows_that_ended_are_not_computed():
    """The ended row's depth is 0 from then on, and the others' tokens are what they are without it."""
    torch.manual_seed(0)
    model, inputs = bart.tiny()
    free = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
    model.generation_config.eos_token_id = next(t for t in free[0, 1:-2].tolist() if t not in free[1].tolist())
    wanted = model.generate(**inputs, max_new_tokens=8)
    out = Engine(model, "never").generate(**inputs, max_new_tokens=8)
    assert torch.equal(out.sequences, wanted)
    ended = (out.depth == 0).any(1)
    assert ended.any() and not ended.all(), "the case is vacuous: exactly one row should end early"


def test_depths_of_beams_belong_to_the_returned_tokens(pair):
    model, inputs = pair
    engine = Engine(model, "random", decoder=(1, 1, 1, 1), keys_values="recompute")
    out = engine.generate(**inputs, max_new_tokens=8, num_beams=3)
    assert out.depth.shape[0] == 2
    assert len(set(out.depth.flatten().tolist())) > 2
    assert out.trace.depth["decoder"].shape[0] == 6


def test_a_run_repeats_with_its_seed(pair):
    model, inputs = pair
    engine = Engine(model, "random", decoder=(1, 1, 1, 1), seed=3)
    first, second = (engine.generate(**inputs, max_new_tokens=8).depth for _ in range(2))
    again = Engine(model, "random", decoder=(1, 1, 1, 1), seed=3)
    assert torch.equal(first, again.generate(**inputs, max_new_tokens=8).depth)
    assert torch.equal(second, again.generate(**inputs, max_new_tokens=8).depth)
    assert not torch.equal(first, second), "one item after the other must not draw the same depths"
    assert not torch.equal(first, engine.with_settings(seed=4).generate(**inputs, max_new_tokens=8).depth)


def test_attached_carries_a_users_own_code_and_restores_the_model(pair):
    model, inputs = pair
    before = {n: (type(m), sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    wanted = model.generate(**inputs, max_new_tokens=6)
    with Engine(model, "static", image=1, text=1, decoder=1).attached() as session:
        inside = model.generate(**inputs, max_new_tokens=6)
        assert sorted(model.state_dict()) == sorted(dict(model.state_dict()))
        assert session.trace.calls["model.encoder.layers"] == 2
    assert not torch.equal(inside, wanted), "the case is vacuous: one layer should say something else than four"
    after = {n: (type(m), sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    assert before == after
    assert torch.equal(model.generate(**inputs, max_new_tokens=6), wanted)


def test_an_exception_in_mid_run_leaves_the_model_whole(pair):
    model, inputs = pair
    wanted = model.generate(**inputs, max_new_tokens=6)

    def burst(*_):
        raise RuntimeError("burst")

    hook = model.model.decoder.layers[1].register_forward_hook(burst)
    with pytest.raises(RuntimeError, match="burst"):
        Engine(model, "static", decoder=3).generate(**inputs, max_new_tokens=6)
    hook.remove()
    assert type(model.model.decoder.layers[0]).__dict__.get("_exitwise_kind") is None
    assert torch.equal(model.generate(**inputs, max_new_tokens=6), wanted)


def test_a_model_is_attached_once_and_other_threads_wait(pair):
    model, inputs = pair
    engine = Engine(model, "static", decoder=2)
    seen = []
    with engine.attached():
        with pytest.raises(exitwise.ExitwiseError, match="already"), Engine(model).attached():
            pass
        thread = threading.Thread(target=lambda: seen.append(engine.generate(**inputs, max_new_tokens=3)))
        thread.start()
        thread.join(0.2)
        assert not seen
    thread.join(20)
    assert len(seen) == 1


def test_a_used_cache_is_not_silently_mixed(pair):
    model, inputs = pair
    with torch.no_grad():
        cache = model(**inputs, decoder_input_ids=inputs["input_ids"], use_cache=True).past_key_values
        with pytest.raises(CacheError, match="7 tokens"), Engine(model).attached():
            model(**inputs, decoder_input_ids=inputs["input_ids"][:, :1], past_key_values=cache, use_cache=True)
        with Engine(model).attached():
            jagged = model(**inputs, decoder_input_ids=inputs["input_ids"], use_cache=True).past_key_values
        with pytest.raises(CacheError, match="outside"):
            model(**inputs, decoder_input_ids=inputs["input_ids"][:, :1], past_key_values=jagged, use_cache=True)


def test_a_static_cache_is_refused_with_a_way_out():
    model, inputs = bart.tiny()
    with pytest.raises(CacheError, match="DynamicCache"):
        Engine(model).generate(**inputs, max_new_tokens=3, cache_implementation="static")


def test_save_and_load(tmp_path, pair):
    model, _ = pair
    engine = Engine(model, "mue", image=0.5, scope="flat", minimum=2)
    path = engine.save(tmp_path / "saved")
    assert path.stat().st_size < 4000
    again = Engine.load(tmp_path / "saved", model)
    assert again.settings_dict() == engine.settings_dict()
    other, _ = ofa.tiny()
    with pytest.raises(FingerprintError, match="another model"):
        Engine.load(tmp_path / "saved", other)
    saved = json.loads(path.read_text())
    for change, says in (
        ({"settings": {**saved["settings"], "imago": 1.0}}, "'imago'"),
        ({"settings": {**saved["settings"], "image": 3.0}}, "outside"),
        ({"method": "mue2"}, "'mue2'"),
        ({"calibration": {"keep": 0.9, "depth": 3}}, "another version"),
        ({"format": 7}, "format 7"),
    ):
        path.write_text(json.dumps({**saved, **change}))
        with pytest.raises(CheckpointError, match=says):
            Engine.load(tmp_path / "saved", model)
    path.write_text(json.dumps(saved)[:40])
    with pytest.raises(CheckpointError, match="damaged"):
        Engine.load(tmp_path / "saved", model)
    with pytest.raises(CheckpointError, match="not there"):
        Engine.load(tmp_path / "nowhere", model)


def test_a_fingerprint_sees_a_change_of_one_weight_in_a_small_layer(pair):
    from exitwise.kept import fingerprint

    model, _ = pair
    before = fingerprint(model)
    with torch.no_grad():
        model.model.decoder.layers[0].self_attn.c_attn[0] += 1e-3
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    ("knobs", "kind", "says"),
    [
        ({"thresold": 0.9}, UnknownName, "thresold"),
        ({"image": float("nan")}, KnobError, "not a number"),
        ({"image": 3.0}, KnobError, "outside"),
        ({"image": "high"}, KnobError, "not a number"),
        ({"scope": "mean"}, KnobError, "token_mean"),
        ({"minimum": 0}, KnobError, "outside"),
    ],
)
def test_a_bad_knob_is_refused_before_anything_runs(pair, knobs, kind, says):
    with pytest.raises(kind, match=says):
        Engine(pair[0], "mue", **knobs)


def test_names_that_are_not_known_get_the_near_miss(pair):
    with pytest.raises(UnknownName, match="mue"):
        Engine(pair[0], "mu")
    with pytest.raises(DepthError, match="has 4 layers"):
        Engine(pair[0], "static", decoder=9).generate(**pair[1], max_new_tokens=2)


def test_calibration_keeps_what_was_asked_and_takes_it(pair):
    model, inputs = pair
    rows = rows_of(inputs) * 2
    engine = Engine(model, "mue")
    found = engine.calibrate(rows, keep=0.5, max_new_tokens=6)
    assert found.quality >= 0.5 * found.quality_full == 0.5
    assert found.etr == max(t["etr"] for t in found.tried if t["quality"] >= 0.5)
    assert {k: engine.settings_dict()[k] for k in found.settings} == found.settings
    json.dumps(found.to_dict())


def test_the_bar_by_hand():
    """Full depth is right in 4 of 4 rows, the setting in 3 of 4; keep 0.5. The differences are .5 .5 .5 -.5: mean .25, sd .5, error .25."""
    full, marks = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert Bar(full, 0.5, 2.0).luck(marks) == pytest.approx(0.5)
    assert Bar(full, 0.5, 0.99).held(marks) and not Bar(full, 0.5, 1.01).held(marks)
    assert Bar(full, 0.75).held(marks) and not Bar(full, 0.76).held(marks)
    for wrong in ({"keep": 0.0}, {"keep": 1.1}, {"keep": 0.9, "margin": -1.0}, {"keep": 0.9, "margin": float("nan")}):
        with pytest.raises(exitwise.ExitwiseError, match="Allowed"):
            Bar(full, **wrong)


def test_a_margin_needs_a_figure_for_each_row(pair):
    engine, rows = Engine(pair[0]), rows_of(pair[1]) * 2
    with pytest.raises(exitwise.ExitwiseError, match="one per row"):
        engine.calibrate(rows, quality=lambda outputs, rows: 1.0, margin=1.0, max_new_tokens=2)
    with pytest.raises(exitwise.ExitwiseError, match="1 figures for 4 rows"):
        engine.calibrate(rows, quality=lambda outputs, rows: [1.0], max_new_tokens=2)


def test_calibration_refuses_what_it_cannot_do(pair):
    engine, rows = Engine(pair[0], "mue"), rows_of(pair[1]) * 2
    for given, asked, says in (
        ([], {}, "no calibration rows"),
        (rows[:3], {}, "3 calibration rows for 4 exits"),
        (rows, {"keep": 1.2}, "keep=1.2"),
        (rows, {"quality": lambda outputs, rows: 0.0}, "nothing to keep"),
        (rows, {"quality": lambda outputs, rows: float("nan")}, "row 0 is nan"),
        (rows, {"quality": lambda outputs, rows: [1.0, 1.0, float("nan"), 1.0]}, "row 2 is nan"),
        (rows, {"budget": 0.0}, "budget=0.0"),
        (rows, {"budget": float("nan")}, "budget=nan"),
        (rows, {"budget": 0.5, "confidence": 0.9}, "promises no quality"),
        (rows, {"budget": 0.5, "margin": 1.0}, "promises no quality"),
        (rows, {"margin": 1.0, "confidence": 0.9}, "allowance for luck"),
        (rows, {"budget": 0.5, "cost": "joules"}, "cost='joules'"),
        (rows, {"confidence": 0.9}, "1 calibration rows for 4 exits"),
        (rows, {"confidence": 1.0}, "confidence=1.0"),
        (rows, {"confidence": 0.9, "keep": 1.0}, "keep=1.0"),
        (rows, {"confidence": 0.9, "trials": 1}, "trials=1"),
    ):
        with pytest.raises(exitwise.ExitwiseError, match=says):
            engine.calibrate(given, max_new_tokens=2, **asked)


def test_replay_on_the_ledger_is_the_live_run_for_encoders(pair):
    """Thresholds are quantiles of the ledger; the streams must leave at three depths or more, or the case is vacuous."""
    from exitwise.calibrate.budget import depths_at

    model, _ = pair
    torch.manual_seed(1)
    inputs = {"input_ids": torch.randint(5, 95, (12, 7)), "image_features": torch.randn(12, 2, 3, 320)}
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :1]
    ledger = Engine(model, "mue").run(record=True, **inputs).trace.sureness
    for stream in ("image", "text"):
        depths = set()
        for share in (0.2, 0.5, 0.9):
            threshold = float(ledger[stream][:, :-1].flatten().quantile(share))
            live = Engine(model, "mue", **{stream: threshold}).run(**inputs).trace.depth[stream]
            assert torch.equal(depths_at(ledger[stream], threshold), live)
            depths |= set(live.tolist())
        assert len(depths) >= 3


def test_an_engine_needs_nothing_but_torch_for_a_model_with_its_own_generate():
    model, inputs = bart.tiny()
    assert isinstance(model, BartForConditionalGeneration)
    out = Engine(model, "static", text=2, decoder=1).generate(**inputs, max_new_tokens=4)
    assert out.trace.layers == {"text": 4, "decoder": 4}
    assert "Bart" in repr(Engine(model))


def test_choosing_scores_what_the_model_says_of_each_candidate(pair):
    """Every score against the untouched model, one row and one candidate at a time; 1e-5 for another batch's order of sums."""
    model, inputs = pair
    candidates, prompt = [[11, 2], [12, 13, 2], [14, 2]], torch.tensor([[0, 20, 21], [0, 30, 31]])
    out = Engine(model, "never").choose(candidates, prompt, **inputs)
    for row in range(2):
        one = {k: v[row : row + 1] for k, v in inputs.items()}
        for index, answer in enumerate(candidates):
            ids = torch.tensor([[*prompt[row].tolist(), *answer]])
            with torch.no_grad():
                logp = model(**one, decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1)[0, 2:]
            wanted = sum(float(logp[i, token]) for i, token in enumerate(answer))
            assert out.scores[row, index].item() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(out.best, out.scores.argmax(-1))


def test_the_candidates_of_a_row_leave_together(pair):
    model, inputs = pair
    engine = Engine(model, "random", decoder=(1, 1, 1, 1))
    depth = engine.choose([[11, 2], [12, 2], [13, 2], [14, 2]], **inputs).trace.depth["decoder"][:, 0].view(2, 4)
    assert (depth == depth[:, :1]).all()
    with pytest.raises(exitwise.ExitwiseError, match="nothing to choose"):
        engine.choose([], **inputs)
