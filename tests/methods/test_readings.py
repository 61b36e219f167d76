"""Methods that read an answer at every exit, on encoder classifiers: what they measure, where rows leave, and what they then say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.families.cases import alone, logits, made, makeup, middle, more_rows
from tests.methods.slow import by_hand, exits_for
from torch import Tensor

from exitwise import Engine, methods
from exitwise.criteria import Step
from exitwise.errors import CheckpointError, FamilyError, FingerprintError, InputError, KnobError
from exitwise.heads import Said, Shape
from exitwise.methods import berxit, deebert, pabee
from exitwise.reading import Reading, View, certain, certainty, entropy_threshold
from exitwise.run.walk import Plan, attached
from exitwise.train.exits import Learner

READERS = ("deebert", "pabee", "fastbert", "berxit", "palbert")
CLASSIFIERS = ("bert", "roberta", "distilbert", "deberta", "albert", "vit")
CLOSE = {"atol": 3e-5, "rtol": 1e-5}  # float32 sums over other batch shapes, logits up to 10


def view_of(said: Tensor, layer: int = 1, layers: int = 6, memory: dict[str, Tensor] | None = None) -> View:
    token = torch.zeros(len(said), 4)
    return View(Step(layer, layers), token, token, lambda: Said(token, said), {} if memory is None else memory)


def test_certainty_by_hand() -> None:
    """H(3/4, 1/4) = 0.5623 nats of ln 2 = 0.6931; uniform 0; one-hot 1, also with -inf for what cannot be said."""
    said = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]).log()
    assert certainty(view_of(said)).tolist() == pytest.approx([1 - 0.562335 / math.log(2), 0.0, 1.0], abs=1e-6)
    assert certain(torch.zeros(1, 7)).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="two classes"):
        certain(torch.zeros(1, 1))


def test_an_entropy_of_the_paper_is_a_threshold_on_certainty() -> None:
    """S = 0.5623 lies between the entropies of (3/4, 1/4) and of (0.74, 0.26); the comparison is strict in both ways of saying it."""
    said = torch.tensor([[0.76, 0.24], [0.74, 0.26]]).log()
    rule = Reading(certainty, entropy_threshold(0.562335, 2))
    assert rule.leaves(certainty(view_of(said)).tolist(), Step(1, 6), [0, 1]) == [True, False]
    for wrong in ((-0.1, 2), (float("nan"), 2), (0.1, 1)):
        with pytest.raises(KnobError, match="not possible"):
            entropy_threshold(*wrong)


def test_the_greatest_probability_by_hand() -> None:
    assert deebert.maximum(view_of(torch.tensor([[0.2, 0.7, 0.1]]).log())).item() == pytest.approx(0.7)


def test_a_streak_counts_agreements_in_a_row() -> None:
    """Answers 1 1 1 0 0 of one row, 0 1 0 1 1 of another: counters 0 1 2 0 1 and 0 0 0 0 1, over 6 - 1 layers."""
    memory: dict[str, Tensor] = {}
    answers = [(1, 0), (1, 1), (1, 0), (0, 1), (0, 1)]
    said = [pabee.streak(view_of(torch.eye(2)[list(a)], i + 1, 6, memory)).tolist() for i, a in enumerate(answers)]
    assert [s[0] for s in said] == pytest.approx([0, 0.2, 0.4, 0, 0.2]) and [s[1] for s in said] == pytest.approx([0, 0, 0, 0, 0.2])


def test_a_regression_agrees_within_the_tolerance() -> None:
    """1.0, 1.05, 1.2: the second is nearer than 0.1 to the first, the third is not to the second."""
    memory: dict[str, Tensor] = {}
    said = [pabee.streak(view_of(torch.tensor([[v]]), i + 1, 5, memory), 0.1).item() for i, v in enumerate((1.0, 1.05, 1.2))]
    assert said == [0.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("patience", "answers", "depth"), [(1, "0011", 2), (2, "0111", 4), (2, "0101", 6), (4, "000000", 5), (6, "000000", 6)]
)
def test_patience_is_the_papers_count(patience: int, answers: str, depth: int) -> None:
    rule = methods.load("pabee").plan(methods.load("pabee").settings({"patience": patience}), {"text": 6}).rules["text"]
    assert isinstance(rule, Reading)
    memory: dict[str, Tensor] = {}
    for layer in range(1, 6):
        at = Step(layer, 6)
        said = torch.eye(2)[[int(answers[layer - 1]) if layer <= len(answers) else layer % 2]]
        if rule.leaves(rule.measure(view_of(said, layer, 6, memory)).tolist(), at, [0]) == [True]:
            break
    else:
        layer = 6
    assert layer == depth


def test_being_right_is_what_the_shared_layer_says() -> None:
    """Weights (1, 0, 0, 0), bias 0, a pooled state of 2: wrong with probability sigmoid(2) = 0.8808."""
    part = torch.nn.Linear(4, 1)
    with torch.no_grad():
        part.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        part.bias.zero_()
    view = view_of(torch.zeros(1, 2))
    view.read, view.parts = lambda: Said(torch.tensor([[2.0, 9, 9, 9]]), torch.zeros(1, 2)), torch.nn.ModuleDict({"wrong": part})
    assert berxit.right(view).item() == pytest.approx(1 - 0.880797, abs=1e-6)


def fitted(case: str, method: str, share: float | None = None, reads: str = "first") -> tuple[Engine, dict[str, Tensor]]:
    """An engine with random exits and a threshold inside what it measures on 18 rows; means are more alike, so it lies higher there."""
    share = share if share is not None else 0.5 if reads == "first" else 0.8
    model, inputs = made(case)
    inputs = more_rows(inputs, copies=9)
    engine = Engine(model, method, exits=exits_for(model, method, reads))
    stream = next(iter(engine.layers))
    sure = engine.run(record=True, **inputs).trace.sureness[stream][:, :-1]
    if method == "pabee":
        return engine.with_settings(patience=1), inputs
    return engine.with_settings(**{stream: middle(sure, share)}), inputs


def decide(engine: Engine, method: str) -> Any:
    """The paper's rule, written down again from the logits and states of one row."""
    threshold = engine.settings_dict()[next(iter(engine.layers))]
    exits = engine.exits
    assert exits is not None

    def ready(tokens: list[Tensor], said: list[Tensor]) -> bool:
        if method == "pabee":
            return len(said) > 1 and int(said[-1].argmax()) == int(said[-2].argmax())
        if method == "berxit":
            head, part = exits.heads[len(said) - 1], exits.parts["wrong"]
            return float(torch.sigmoid(part(torch.tanh(head.pool(tokens[-1]))))) < 1 - threshold
        if method == "palbert":
            going = cdf = 1.0
            before = torch.zeros_like(tokens[0])
            for token in tokens:
                pooled = torch.tanh(exits.parts["halt"].pool(token))
                going *= 1 - float(torch.sigmoid(exits.parts["halt"].net(torch.cat([pooled, before]))))
                cdf, before = 1 - going, pooled
            return cdf > threshold
        p = said[-1].double().softmax(-1)
        return float(-(p * p.log()).sum()) < (1 - threshold) * math.log(len(p))

    return ready


PAIRS = [
    *(("bert", method, "first") for method in READERS),
    *(("bert", method, "mean") for method in READERS),
    *((case, "deebert", "first") for case in CLASSIFIERS[1:]),
    ("albert", "palbert", "first"),
    ("roberta", "deebert", "mean"),
    ("vit", "pabee", "first"),
]


@pytest.mark.parametrize(("case", "method", "reads"), PAIRS)
def test_live_exits_are_those_of_a_slow_loop(case: str, method: str, reads: str) -> None:
    engine, inputs = fitted(case, method, reads=reads)
    with torch.no_grad():
        depths, want = by_hand(engine, inputs, decide(engine, method))
    out = engine.run(**inputs)
    stream = next(iter(engine.layers))
    assert len(set(depths)) >= 2 and min(depths) < 6, "the case is vacuous"
    assert out.trace.depth[stream].tolist() == depths
    torch.testing.assert_close(out.logits, want, **CLOSE)
    plain = logits(engine.model, inputs)
    early = torch.tensor(depths) < 6
    assert (out.logits - plain)[early].abs().amax(1).min() > 1e-3  # exits say something else than the model does
    assert out.trace.rows[next(iter(out.trace.rows))] == sum(depths)


@pytest.mark.parametrize("reads", ["first", "mean"])
@pytest.mark.parametrize("method", READERS)
def test_a_batch_says_what_each_row_says_alone(method: str, reads: str) -> None:
    engine, inputs = fitted("bert", method, reads=reads)
    together = engine.run(**inputs)
    for row in range(18):
        single = engine.run(**alone(inputs, row, strip=True))
        assert single.trace.depth["text"].item() == together.trace.depth["text"][row]
        torch.testing.assert_close(single.logits[0], together.logits[row], **CLOSE)


@pytest.mark.parametrize("method", READERS)
def test_never_leaving_is_the_untouched_model(method: str) -> None:
    model, inputs = made("bert")
    want, before = logits(model, inputs), makeup(model)
    for exits in (None, exits_for(model, method)):
        engine = Engine(model, method, exits=exits)
        out = engine.run(**inputs)
        assert torch.equal(out.logits, want) and out.trace.depth["text"].tolist() == [6, 6]
        assert out.trace.head_calls == 1  # the model's own
        if exits is not None or method in ("deebert", "pabee", "fastbert"):
            assert torch.equal(engine.run(record=True, **inputs).logits, want)
        else:
            with pytest.raises(KnobError, match="needs trained exits"):
                engine.run(record=True, **inputs)
    assert makeup(model) == before


@pytest.mark.parametrize("method", READERS)
def test_what_was_recorded_replays_as_a_live_run(method: str) -> None:
    from exitwise.calibrate.budget import depths_at

    engine, inputs = fitted("roberta", method)
    engine = engine.with_settings(patience=None) if method == "pabee" else engine
    book = engine.with_settings(text=1.0).run(record=True, **inputs).trace.sureness["text"]
    assert book[:, -1].isnan().all() and not book[:, :-1].isnan().any()
    found = set()
    for share in (0.3, 0.6, 0.9):
        threshold = float(book[:, :-1].flatten().quantile(share))
        if threshold < 1:
            live = engine.with_settings(text=threshold).run(**inputs).trace.depth["text"]
            assert torch.equal(depths_at(book, threshold), live)
            found |= set(live.tolist())
    assert len(found) >= 3


def test_fixed_depths_speak_through_trained_heads() -> None:
    """Static depth with another method's heads: the head of that exit answers, and only rows that leave are read."""
    model, inputs = made("bert")
    exits = exits_for(model, "deebert")
    out = Engine(model, "static", exits=exits, text=3).run(**inputs)
    states: list[Tensor] = []
    hook = model.bert.encoder.layer[2].register_forward_hook(lambda _m, _a, o: states.append(o))
    logits(model, inputs)
    hook.remove()
    with torch.no_grad():
        want = exits.heads[2](states[0][:, 0]).logits
    assert torch.equal(out.logits, want) and out.trace.head_calls == 2  # that head, and the model's own, whose answer is put aside
    assert torch.equal(Engine(model, "static", exits=exits, text=6).run(**inputs).logits, logits(model, inputs))


def test_heads_are_counted_as_often_as_they_run() -> None:
    engine, inputs = fitted("bert", "deebert")
    assert engine.exits is not None
    ran = []
    for head in engine.exits.heads:
        head.register_forward_hook(lambda *_: ran.append(1))
    trace = engine.run(**inputs).trace
    assert trace.head_calls == len(ran) + 1 and len(ran) >= 2


def test_the_loss_is_that_of_the_answers_given() -> None:
    """A user who passes labels gets the loss of what the exits said, not of the model's own head on an early state."""
    engine, inputs = fitted("bert", "deebert")
    labels = torch.arange(18) % 5
    out = engine.run(**inputs, labels=labels)
    assert (out.trace.depth["text"] < 6).any()
    assert out.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(out.logits, labels).item(), abs=1e-6)


def test_without_trained_heads_the_models_own_head_is_read() -> None:
    model, inputs = made("bert")
    inputs = more_rows(inputs, copies=9)
    engine = Engine(model, "deebert")
    sure = engine.run(record=True, **inputs).trace.sureness["text"][:, :-1]
    engine = engine.with_settings(text=middle(sure, 0.6))
    threshold = engine.settings_dict()["text"]
    depths, want = by_hand(engine, inputs, lambda _, said: certain(said[-1][None]).item() > threshold)
    out = engine.run(**inputs)
    assert out.trace.depth["text"].tolist() == depths and len(set(depths)) >= 2
    torch.testing.assert_close(out.logits, want, **CLOSE)


@pytest.mark.parametrize("reads", ["first", "mean"])
@pytest.mark.parametrize("method", READERS)
def test_engines_with_exits_are_kept_and_come_back(method: str, reads: str, tmp_path: Any) -> None:
    engine, inputs = fitted("bert", method, reads=reads)
    engine.save(tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 90_000  # five heads of width 32, never the base
    again = Engine.load(tmp_path, engine.model)
    assert again.exits is not None and again.exits.reads == reads
    assert again.settings_dict() == engine.settings_dict()
    assert torch.equal(again.run(**inputs).logits, engine.run(**inputs).logits)
    static = Engine(engine.model, "static", exits=engine.exits, text=2)
    static.save(tmp_path / "other")  # the exits of one method under the rule of another
    assert torch.equal(Engine.load(tmp_path / "other", engine.model).run(**inputs).logits, static.run(**inputs).logits)


def test_training_reads_what_running_reads() -> None:
    """The answers of a training step are those of the exits run, pads in the batch or not; a decoder has no mean to read."""
    engine, inputs = fitted("bert", "deebert", reads="mean")
    assert engine.exits is not None and not inputs["attention_mask"].all()
    learner = Learner(engine.model, engine.family, engine.exits, frozen=True).eval()
    for depth, answer in enumerate(learner.answers(learner.walk(inputs))[:-1], 1):
        live = Engine(engine.model, "static", exits=engine.exits, text=depth).run(**inputs)
        torch.testing.assert_close(answer, live.logits, **CLOSE)
    with pytest.raises(KnobError, match="of a decoder only first"):
        Engine(made("bart")[0], "deebert").fresh_exits(reads="mean")
    with pytest.raises(KnobError, match="reads='last' is not allowed"):
        Engine(engine.model, "deebert").fresh_exits(reads="last")


def test_exits_that_do_not_belong_are_refused(tmp_path: Any) -> None:
    engine, _ = fitted("bert", "deebert")
    engine.save(tmp_path)
    torch.manual_seed(9)
    from exitwise.families import bert

    other = bert.tiny()[0]
    with pytest.raises(FingerprintError, match="another model"):
        Engine.load(tmp_path, other)
    settings, weights = tmp_path / "exitwise.json", tmp_path / "exits.safetensors"
    Engine(other, "deebert", exits=exits_for(other, "deebert")).save(tmp_path / "other")
    kept = weights.read_bytes()
    weights.write_bytes((tmp_path / "other" / "exits.safetensors").read_bytes())
    with pytest.raises(FingerprintError, match="another model"):
        Engine.load(tmp_path, engine.model)
    weights.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        Engine.load(tmp_path, engine.model)
    weights.unlink()
    with pytest.raises(CheckpointError, match="not there"):
        Engine.load(tmp_path, engine.model)
    assert settings.exists()


def test_what_does_not_fit_is_refused_with_a_way_out() -> None:
    model, _ = made("bert")
    wrong = methods.load("deebert").exits(Shape(32, 3, 6))  # type: ignore[misc]
    with pytest.raises(FingerprintError, match="classes=3.*classes=5"):
        Engine(model, "deebert", exits=wrong)
    with pytest.raises(FamilyError, match="classifier"):
        masked = made("bert-masked")[0]
        with attached(masked, Engine(masked).family, Plan(), exits_for(model, "deebert")):
            pass
    with pytest.raises(KnobError, match="needs trained exits with wrong"):
        Engine(model, "berxit", text=0.9)
    with pytest.raises(KnobError, match="trains no exits"):
        Engine(model, "mue").fresh_exits()
    with pytest.raises(KnobError, match="twice"):
        Engine(model, "pabee", patience=2, text=0.5)
    with pytest.raises(KnobError, match="outside 0.0..2.0"):
        Engine(model, "deebert", text=-0.5)
    with pytest.raises(KnobError, match="nothing can be read"):
        Engine(made("bart")[0], "deebert", text=0.5)
    with pytest.raises(KnobError, match="needs a decoder"):
        Engine(model, "calm", decoder=0.5)


def test_the_oracle_answers_at_the_first_exit_that_agrees() -> None:
    """Every class is the untouched model's; depths are a slow loop's; what ran is everything, and the trace says so."""
    for case, trained in (("deberta", True), ("albert", False)):
        model, inputs = made(case)
        inputs = more_rows(inputs, copies=9)
        engine = Engine(model, "oracle", exits=exits_for(model, "deebert") if trained else None)
        want = logits(model, inputs)
        (stack,) = engine.family.stacks_of(model)
        depths = []
        for row in range(18):
            final = int(want[row].argmax())
            found, said = by_hand(engine, alone_rows(inputs, row), lambda _, said, final=final: int(said[-1].argmax()) == final)
            depths += found
        out = engine.run(**inputs)
        assert out.trace.depth["text"].tolist() == depths and len(set(depths)) >= 3
        assert torch.equal(out.logits.argmax(-1), want.argmax(-1)) and out.trace.rows[stack.path] == 18 * 6
        _, answers = by_hand(engine, inputs, lambda _, said: False)
        full = torch.tensor(depths) == 6
        torch.testing.assert_close(out.logits[full], answers[full], **CLOSE)


def alone_rows(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return alone(inputs, row, strip=False)


def test_depths_of_a_shared_layer_are_counted_anew_in_every_call() -> None:
    model, inputs = made("albert")
    with Engine(model, "static", text=3).attached() as session:
        first, second = logits(model, inputs), logits(model, inputs)
    assert torch.equal(first, second) and session.trace.depth["text"].tolist() == [3] * 4
    assert list(session.trace.calls.values()) == [6]


def test_a_deberta_with_a_convolution_between_layers_is_refused() -> None:
    config = made("deberta")[0].config
    config.conv_kernel_size = 3
    from transformers import DebertaV2ForSequenceClassification

    with pytest.raises(FamilyError, match="convolution between its layers 1 and 2"):
        Engine(DebertaV2ForSequenceClassification(config), "never")


@pytest.mark.parametrize("method", ["deebert", "pabee"])
def test_a_classifier_is_calibrated_as_it_is(method: str) -> None:
    """Rows one by one, without a `predict`: the thresholds found keep the asked share of full depth's classes, and save something."""
    model, inputs = made("vit")
    inputs = more_rows(inputs, copies=9)
    engine = Engine(model, method)  # the model's own head, so that early answers can be right
    found = engine.calibrate([alone(inputs, row, strip=False) for row in range(18)], keep=0.6, trials=8)
    assert found.quality_full == 1.0 and found.quality >= 0.6 and found.etr > 0
    out = engine.run(**inputs)
    same = out.logits.argmax(-1) == logits(model, inputs).argmax(-1)
    assert float(same.double().mean()) == pytest.approx(found.quality) and (out.trace.depth["image"] < 6).any()


def test_exits_that_do_not_name_their_maker_are_not_saved(tmp_path: Any) -> None:
    model, _ = made("bert")
    exits = methods.load("deebert").exits(Engine(model, "deebert").shape())  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="made_by"):
        Engine(model, "deebert", exits=exits).save(tmp_path)
