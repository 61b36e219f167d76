"""Methods that read a decoder's answers: CALM's measures and decays, and the others through the model's own tied head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.families.cases import forced_tokens, layer_outputs, logits, made, middle, more_rows, write
from tests.methods.slow import exits_for
from torch import Tensor

from exitwise import Engine, methods
from exitwise.criteria import Step
from exitwise.errors import InputError, KnobError
from exitwise.heads import Said
from exitwise.methods import calm
from exitwise.reading import Reading, View, certain

CASES = ("bart", "ofa", "whisper", "t5")


def test_the_gap_and_the_saturation_by_hand() -> None:
    token, before = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    view = View(Step(2, 4), token, before, lambda: Said(token, torch.tensor([[0.5, 0.3, 0.2]]).log()))
    assert calm.gap(view).item() == pytest.approx(0.2) and calm.saturation(view).item() == pytest.approx(0.6)
    view.at = Step(1, 4)
    assert calm.saturation(view).item() == 0.0 and not view.__dict__["memory"]


def test_both_decays_by_hand() -> None:
    """lambda 0.8, tau 4, t / N = 1/2: 0.72 + 0.1 e^-2 = 0.7335 in the paper, 0.8 (0.9 + 0.1 e^-2) = 0.7308 as released."""
    assert calm.paper_decay(0.8, Step(1, 4, 5, 10), 4.0) == pytest.approx(0.733534, abs=1e-6)
    assert calm.released_decay(0.8, Step(1, 4, 5, 10), 4.0) == pytest.approx(0.730827, abs=1e-6)
    rule = methods.load("calm").plan({**methods.load("calm").settings({}), "decoder": 0.8}, {"decoder": 4}).rules["decoder"]
    assert isinstance(rule, Reading)
    sure = torch.tensor([0.7336, 0.7335])
    assert rule.leaves(sure.tolist(), Step(1, 4, 5, 10), [0, 1]) == [True, False]
    assert Reading(calm.gap, 0.5, strict=False).leaves([0.5], Step(1, 4), [0]) == [True]  # at the threshold it leaves


def reference(engine: Engine, inputs: dict[str, Tensor], tokens: Tensor) -> tuple[list[list[int]], Tensor]:
    """(depths, logits) of every row and step, from the states of the untouched model, with the rule written down again."""
    model, family, settings = engine.model, engine.family, engine.settings_dict()
    stack = next(s for s in family.stacks_of(model) if s.kind == "decoder")
    calls = layer_outputs(list(stack.layers(model)), lambda: write(model, inputs, tokens))
    states = torch.stack([torch.stack([call[:, -1] for call in seen], 1) for seen in calls])  # (layers, rows, steps, width)
    with torch.no_grad():
        said = family.readout(model, states)  # type: ignore[misc]
    layers, rows, steps = said.shape[:3]

    def confident(layer: int, row: int, step: int) -> float:
        state, before = states[layer, row, step], states[layer - 1, row, step]
        if settings["measure"] == "softmax":
            best = sorted(said[layer, row, step].softmax(-1).tolist())
            return best[-1] - best[-2]
        if settings["measure"] == "saturation":
            return 0.0 if layer == 0 else float(torch.cosine_similarity(before, state, 0))
        part: Any = engine.exits.parts["ready"]  # type: ignore[union-attr]
        return float(torch.sigmoid(part(state)))

    depths = []
    with torch.no_grad():
        for row in range(rows):
            limits = [0.9 * settings["decoder"] + 0.1 * math.exp(-settings["tau"] * step / steps) for step in range(steps)]
            ready = [[layer for layer in range(layers - 1) if confident(layer, row, s) >= limits[s]] for s in range(steps)]
            depths.append([(r[0] if r else layers - 1) + 1 for r in ready])
    want = torch.stack([torch.stack([said[d - 1, r, s] for s, d in enumerate(each)]) for r, each in enumerate(depths)])
    return depths, want


@pytest.mark.parametrize("measure", sorted(calm.MEASURES))
@pytest.mark.parametrize("case", CASES)
def test_tokens_leave_where_a_slow_loop_says(case: str, measure: str) -> None:
    model, inputs = made(case)
    tokens = forced_tokens(2)
    engine = Engine(model, "calm", exits=exits_for(model, "calm"), measure=measure, keys_values="run late")  # late runs: exact states
    with engine.attached(record=True, steps=8) as session:
        logits(model, inputs, tokens)
    sure = session.trace.sureness["decoder"][..., 1:-1]  # beyond the first layer, where saturation is 0
    usual = middle(sure, 0.6)
    small = usual < 0.05  # a random model that is hardly ever sure: then the decay must end soon
    engine = engine.with_settings(decoder=min(0.999, (usual if small else usual - 0.02) / 0.9), tau=100.0 if small else 4.0)
    depths, want = reference(engine, inputs, tokens)
    with engine.attached(steps=8) as session:
        got = logits(model, inputs, tokens)
    assert session.trace.depth["decoder"].tolist() == depths and len({d for row in depths for d in row}) >= 2
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-5)  # float32 sums over other shapes


@pytest.mark.parametrize("method", ["calm", "deebert", "pabee", "fastbert"])
def test_never_leaving_is_what_the_model_writes(method: str) -> None:
    for case in ("bart", "ofa"):
        model, inputs = made(case)
        for beams in (1, 2):
            want = model.generate(**inputs, max_new_tokens=6, num_beams=beams)
            out = Engine(model, method).generate(**inputs, max_new_tokens=6, num_beams=beams)
            assert torch.equal(out.sequences, want)


def test_the_heads_that_confidence_costs_are_counted() -> None:
    """softmax reads the vocabulary's head after each layer that asks; the classifier never does. The model's own call comes on top."""
    model, inputs = made("bart")
    engine = Engine(model, "calm", exits=exits_for(model, "calm"), decoder=0.999999, decay="none")
    out = engine.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert (out.trace.depth["decoder"] == 4).all() and out.trace.head_calls == 4 * (3 + 1)
    out = engine.with_settings(measure="classifier").generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert out.trace.head_calls == 4


def test_batch_min_waits_for_the_last_row() -> None:
    model, inputs = made("bart")
    inputs, tokens = more_rows(inputs), forced_tokens(6)
    engine = Engine(model, "calm", keys_values="run late", decay="none")
    with engine.attached(record=True, steps=8) as session:
        logits(model, inputs, tokens)
    engine = engine.with_settings(decoder=middle(session.trace.sureness["decoder"][..., :-1], 0.5))
    seen = {}
    for batch in ("compact", "min"):
        with engine.with_settings(batch=batch).attached(steps=8) as session:
            logits(model, inputs, tokens)
        seen[batch] = session.trace.depth["decoder"]
    assert torch.equal(seen["min"], seen["min"].amax(0, keepdim=True).expand_as(seen["min"]))
    assert (seen["min"] >= seen["compact"]).all() and (seen["min"] > seen["compact"]).any()


@pytest.mark.parametrize("case", ["t5", "ofa", "llama"])
def test_the_oracle_of_words_leaves_in_the_keys_and_values_alone(case: str) -> None:
    """Full depth says the words, over what exits left: on the first step they are the model's; depths are the rule's, all layers run; where
    nothing leaves it is the model; with exact keys and values it would say nothing, and is refused."""
    model, inputs = made(case)
    tokens = forced_tokens(2)
    engine = Engine(model, "calm", decay="none", **methods.load("calm").preset("oracle-words"))
    with engine.attached(record=True, steps=8) as session:
        want = logits(model, inputs, tokens)
    assert torch.equal(want, logits(model, inputs, tokens))  # a threshold of 1 never leaves: the model, bit for bit
    engine = engine.with_settings(decoder=middle(session.trace.sureness["decoder"][..., :-1], 0.5))
    with engine.attached(steps=8) as session:
        got = logits(model, inputs, tokens)
    trace = session.trace
    (path,) = trace.calls.keys() & {stack.path for stack in engine.family.stacks_of(model) if stack.kind == "decoder"}
    depth = trace.depth["decoder"]
    assert len(depth.unique()) >= 2 and trace.rows[path] == 4 * depth.numel() and trace.fills[path] > 0
    torch.testing.assert_close(got[:, 0], want[:, 0], atol=3e-5, rtol=1e-5)  # nothing was written before; sums in another order
    assert not torch.allclose(got[:, 1:], want[:, 1:], atol=1e-3)
    out = engine.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert out.depth is not None and out.depth.min() < 4 and out.trace.rows[path] == 4 * out.depth.numel()
    for wrong in ({"keys_values": "recompute"}, {"rank": 8}):
        with pytest.raises(KnobError, match="keys_values='propagate' and rank=0"):
            engine.with_settings(**wrong)


def test_batch_min_holds_for_the_oracle_of_words() -> None:
    model, inputs = made("bart")
    inputs, tokens = more_rows(inputs), forced_tokens(6)
    engine = Engine(model, "calm", decay="none", words="full")
    with engine.attached(record=True, steps=8) as session:
        logits(model, inputs, tokens)
    engine = engine.with_settings(decoder=middle(session.trace.sureness["decoder"][..., :-1], 0.15), batch="min")
    with engine.attached(steps=8) as session:
        logits(model, inputs, tokens)
    depth = session.trace.depth["decoder"]
    assert torch.equal(depth, depth[:1].expand_as(depth)) and depth.min() < 4


def test_choosing_judges_the_candidates_alone() -> None:
    """The entropy is that of the candidates' first tokens, at the place where they follow the prompt; an answer's rows leave as one."""
    model, inputs = made("ofa")
    inputs = more_rows(inputs)
    candidates, prompt = [[11, 2], [12, 13, 2], [14, 2]], torch.arange(12).view(6, 2) + 20
    ids = torch.cat([prompt.repeat_interleave(3, 0), torch.tensor([[11, 2, 0], [12, 13, 2], [14, 2, 0]]).repeat(6, 1)], 1)[:, :-1]
    family = Engine(model, "never").family
    stack = next(s for s in family.stacks_of(model) if s.kind == "decoder")
    many = {k: v.repeat_interleave(3, 0) for k, v in inputs.items()}

    def run() -> None:
        with torch.no_grad():
            model(**many, decoder_input_ids=ids, use_cache=False)

    states = [calls[0][::3, 1] for calls in layer_outputs(list(stack.layers(model)), run)]
    with torch.no_grad():
        sure = torch.stack([certain(family.readout(model, state)[:, [11, 12, 14]]) for state in states[:-1]], 1)  # type: ignore[misc]
    threshold = middle(sure, 0.5)
    want = [next((i + 1 for i, c in enumerate(row) if c > threshold), 4) for row in sure.tolist()]
    assert len(set(want)) >= 2
    out = Engine(model, "deebert", decoder=threshold).choose(candidates, prompt, **inputs)
    assert out.trace.depth["decoder"].view(6, 3).tolist() == [[d] * 3 for d in want]


def test_a_candidate_that_the_model_cannot_say_is_refused() -> None:
    model, inputs = made("ofa")
    with pytest.raises(InputError, match="5000.*outside the answers 0..98"):
        Engine(model, "deebert", decoder=0.5).choose([[11], [5000]], **inputs)
    with pytest.raises(KnobError, match="needs trained exits with ready"):
        Engine(model, "calm", decoder=0.5, measure="classifier")


@pytest.mark.parametrize("case", ["t5", "whisper"])
def test_the_oracle_says_what_the_model_says(case: str) -> None:
    """Depths are the first layers whose read-out of the untouched model's states is that of the last; every layer runs."""
    model, inputs = made(case)
    tokens = forced_tokens(2)
    want = logits(model, inputs, tokens)
    family = Engine(model, "never").family
    stack = next(s for s in family.stacks_of(model) if s.kind == "decoder")
    calls = layer_outputs(list(stack.layers(model)), lambda: write(model, inputs, tokens))
    states = torch.stack([torch.stack([call[:, -1] for call in seen], 1) for seen in calls])
    with torch.no_grad():
        said = family.readout(model, states).argmax(-1)  # type: ignore[misc]
    depths = ((said == said[-1]).int().argmax(0) + 1).tolist()
    engine = Engine(model, "oracle")
    with engine.attached() as session:
        got = logits(model, inputs, tokens)
    assert session.trace.depth["decoder"].tolist() == depths and {d for row in depths for d in row} != {4}
    assert torch.equal(got.argmax(-1), want.argmax(-1)) and session.trace.calls[stack.path] == 4 * len(depths[0])


def test_a_method_is_calibrated_for_the_stream_that_answers() -> None:
    """An encoder-decoder has a text stream too, for which the method has a knob; nothing can be read there."""
    model, inputs = made("t5")
    engine = Engine(model, "deebert")
    found = engine.calibrate([{k: v[:1] for k, v in inputs.items()}] * 4, keep=0.5, trials=3, max_new_tokens=3)
    assert set(found.settings) == {"decoder"} and engine.settings_dict()["text"] == 1.0
