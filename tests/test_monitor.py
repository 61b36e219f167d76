"""The watch on a running engine: its alarm rate where the truth is known, and that nobody is harmed by it.

A simulated rate may exceed its level by 3 sqrt(level (1 - level) / streams): three standard deviations of such a rate.
"""

import json
import math

import numpy as np
import pytest
import torch

from exitwise import Engine, Monitor
from exitwise.calibrate.evidence import Evidence
from exitwise.calibrate.guarantee import Promise
from exitwise.calibrate.promised import LOST
from exitwise.errors import CalibrationError, CheckpointError, FingerprintError, KnobError
from exitwise.families import bart, bert

# --- the evidence


def test_the_capital_by_hand():
    """Risk 1/2: bets of 1/4, 1/2, 1 and 3/2. A loss of 1 multiplies the half that starts at once by 1 + bet/2, in quarters; the other
    half waits, and a third of it (1/6 of all) starts at the next row."""
    evidence = Evidence(0.5)
    assert float(evidence.capital) == 1 and evidence.bets.ravel().tolist() == [0.25, 0.5, 1, 1.5]
    evidence.add(1.0)
    first = [0.125 * (1 + bet / 2) for bet in (0.25, 0.5, 1, 1.5)]
    assert float(evidence.capital) == pytest.approx(sum(first) + 1 / 2)
    evidence.add(0.25)
    second = [(had + 1 / 24) * (1 - bet / 4) for had, bet in zip(first, (0.25, 0.5, 1, 1.5), strict=True)]
    assert float(evidence.capital) == pytest.approx(sum(second) + 1 / 3)


@pytest.mark.parametrize("draw", ["bernoulli", "beta", "in bursts"])
@pytest.mark.parametrize(("risk", "alpha"), [(0.02, 0.01), (0.05, 0.05), (0.3, 0.05)])
def test_at_the_boundary_false_alarms_are_rare_although_one_always_looks(risk, alpha, draw):
    """2,000 streams of 1,000 rows whose mean loss is the risk itself, looked at after every row. In bursts: the next loss's chance depends
    on what came before, and is the risk in the mean."""
    streams, dice = 2000, np.random.default_rng(7)
    evidence, alarmed, last = Evidence(risk, (streams,)), np.zeros(streams, bool), np.ones(streams)
    for _ in range(1000):
        if draw == "beta":
            loss = dice.beta(risk, 1 - risk, streams)
        elif draw == "bernoulli":
            loss = (dice.random(streams) < risk).astype(float)
        else:
            size = np.where(last > 0, 1.0, 2 * risk)  # after a loss all or nothing, otherwise small losses, more often
            loss = last = size * (dice.random(streams) < risk / size)
        evidence.add(loss)
        alarmed |= evidence.capital >= 1 / alpha
    assert 0 < alarmed.mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / streams)


@pytest.mark.parametrize(("good", "within"), [(0, 150), (1000, 350)])
def test_a_worse_stream_is_seen_soon_and_also_after_a_long_good_time(good, within):
    """Risk 2 %, then 10 % are lost. By simulation half are seen after 67 rows, or after 194 where 1,000 rows with half the risk went
    before; nine of ten within the figures above. Without capital that waits, the second would take several times as long."""
    streams, dice = 500, np.random.default_rng(1)
    evidence, seen = Evidence(0.02, (streams,)), np.zeros(streams, bool)
    for row in range(good + within):
        evidence.add((dice.random(streams) < (0.01 if row < good else 0.1)).astype(float))
        seen |= evidence.capital >= 100
        if row + 1 == good:
            assert seen.mean() < 0.01
    assert seen.mean() >= 0.85


def test_losses_that_are_none_are_refused():
    for wrong in (math.nan, 1.1, -0.1, [0.5]):
        with pytest.raises(CalibrationError, match=r"0\.\.1"):
            Evidence(0.1).add(wrong)
    with pytest.raises(KnobError, match="risk=1"):
        Evidence(1.0)


# --- the monitor


@pytest.fixture(scope="module")
def served():
    torch.manual_seed(0)
    model, inputs = bart.tiny()
    return Engine(model, "mue", text=0.2, decoder=0.2), inputs


ASKED = {"max_new_tokens": 5}


def test_the_answer_is_the_engines_own_and_so_are_the_callers_random_numbers(served):
    engine, inputs = served
    plain = engine.generate(**inputs, **ASKED)
    watch = Monitor(engine, 0.1, share=1.0)
    torch.manual_seed(3)
    out = watch.generate(**inputs, **ASKED)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    engine.generate(**inputs, **ASKED)
    assert torch.equal(drawn, torch.rand(3)) and torch.equal(out.sequences, plain.sequences) and torch.equal(out.depth, plain.depth)
    assert out.trace.to_dict() == plain.trace.to_dict() and not out.trace.sureness
    seen, full = watch.report(), Engine(engine.model, "never").generate(**inputs, **ASKED)
    wrong = [a != b for a, b in zip(full.sequences.tolist(), plain.sequences.tolist(), strict=True)]
    assert (seen.requests, seen.compared, seen.mean_loss) == (1, 2, sum(wrong) / 2) and any(wrong)
    assert seen.exits["text"] == torch.bincount(plain.trace.depth["text"], minlength=5)[1:].tolist()
    assert sum(seen.exits["decoder"]) == int((plain.depth > 0).sum())
    recorded = engine.with_settings(text=1.0, decoder=1.0).generate(record=True, **inputs, **ASKED).trace.sureness["text"]
    assert seen.sureness["text"] == pytest.approx(recorded.double().mean(0).tolist())


def test_a_request_that_draws_or_brings_a_cache_is_not_compared(served):
    engine, inputs = served
    watch = Monitor(engine, 0.1, share=1.0)
    torch.manual_seed(5)
    drawn = watch.generate(**inputs, do_sample=True, **ASKED).sequences
    torch.manual_seed(5)
    assert torch.equal(drawn, engine.generate(**inputs, do_sample=True, **ASKED).sequences)
    watch.generate(**inputs, stopping_criteria=[], **ASKED)
    assert (watch.report().skipped, watch.report().compared, watch.report().requests) == (2, 0, 2)


def test_an_exception_in_the_shadow_reaches_nobody(served, monkeypatch):
    engine, inputs = served
    watch = Monitor(engine, 0.1, share=1.0)
    plain = engine.generate(**inputs, **ASKED)
    monkeypatch.setattr(watch.full, "generate", lambda **_: 1 / 0)
    assert torch.equal(watch.generate(**inputs, **ASKED).sequences, plain.sequences)
    assert watch.report().failed == 1 and "ZeroDivisionError" in str(watch.report()) and watch.report().compared == 0
    for loss in (lambda full, early, given: [math.nan, 0.0], lambda full, early, given: [0.0, 2.0], lambda full, early, given: 3 / 0):
        bad = Monitor(engine, 0.1, share=1.0, loss=loss)
        assert torch.equal(bad.generate(**inputs, **ASKED).sequences, plain.sequences)
        assert bad.report().failed == 1 and bad.report().compared == 0
    with pytest.raises(ValueError, match="gibberish"):  # the caller's own mistake is the caller's
        watch.generate(**inputs, gibberish=object())


def test_the_flag_is_raised_by_what_is_lost_and_stays(served):
    engine, inputs = served
    losses = iter([1.0] * 40 + [0.0] * 400)
    watch = Monitor(engine, 0.05, share=1.0, loss=lambda full, early, given: [next(losses), None])
    model = Engine(engine.model, "static", text=1, decoder=1)
    watch.engine = watch.full = model  # quick
    flags = []
    for _ in range(20):
        watch.generate(**inputs, max_new_tokens=1)
        flags.append(watch.flagged)
    by_hand = Evidence(0.05)
    want = []
    for _ in range(20):
        by_hand.add(1.0)
        want.append(bool(by_hand.capital >= 100) or (bool(want) and want[-1]))
    assert flags == want and not flags[0] and flags[-1]
    assert watch.report().flagged_at == flags.index(True) + 1 and "FLAG" in str(watch.report())


def test_the_share_that_is_sampled_does_not_depend_on_what_is_asked(served, monkeypatch):
    engine, inputs = served
    watch, compared = Monitor(engine, 0.1, share=0.3, seed=4), []
    monkeypatch.setattr(watch.engine, "generate", lambda **_: plain)
    plain = Engine(engine.model, "never").generate(**inputs, max_new_tokens=1)
    monkeypatch.setattr(watch, "_compare", lambda *_: compared.append(watch.report().requests))
    for _ in range(1000):
        watch.generate()
    assert abs(len(compared) - 300) < 3 * math.sqrt(1000 * 0.3 * 0.7)
    monkeypatch.undo()


def test_a_saved_watch_goes_on_as_if_it_had_never_stopped(served, tmp_path):
    engine, inputs = served
    whole, half = Monitor(engine, 0.1, share=0.5, seed=1), Monitor(engine, 0.1, share=0.5, seed=1)
    for _ in range(6):
        whole.generate(**inputs, **ASKED)
    for _ in range(3):
        half.generate(**inputs, **ASKED)
    again = Monitor.load(half.save(tmp_path / "watch" / "state.json"), engine)
    for _ in range(3):
        again.generate(**inputs, **ASKED)
    assert again.report() == whole.report() and 0 < whole.report().compared < 12
    assert json.loads(json.dumps(whole.report().to_dict()))["requests"] == 6
    with pytest.raises(FingerprintError, match="other thresholds"):
        Monitor.load(tmp_path / "watch" / "state.json", engine.with_settings(text=0.5))
    with pytest.raises(CheckpointError, match="not there"):
        Monitor.load(tmp_path / "gone.json", engine)
    (tmp_path / "bad.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="damaged"):
        Monitor.load(tmp_path / "bad.json", engine)


def test_a_classifier_is_compared_by_its_likeliest_class():
    torch.manual_seed(0)
    model, inputs = bert.tiny()
    engine = Engine(model, "static", text=1)
    watch = Monitor(engine, 0.5, share=1.0)
    out = watch.run(**inputs)
    with torch.no_grad():
        full = model(**inputs)
    wrong = (out.logits.argmax(-1) != full.logits.argmax(-1)).double()
    wrong = wrong if wrong.dim() == 1 else wrong[:, -1]
    assert watch.report().mean_loss == float(wrong.mean()) and watch.report().exits["text"][0] == len(wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"promise": 0.0}, "risk=0.0"),
        ({"share": 0.0}, "share=0.0"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"promise": Promise(None, 0.1, 0.95, "hoeffding", "split", 3, 0, 10)}, "Nothing but full depth"),
        ({"promise": Promise(1, 0.1, 0.95, "hoeffding", "split", 3, 1, 10, loss=LOST).to_dict()}, "risk of disagreement"),
    ],
)
def test_a_watch_that_cannot_be_kept_is_refused(served, wrong, says):
    with pytest.raises(KnobError, match=says):
        Monitor(**{"engine": served[0], "promise": 0.1, **wrong})
    made = Promise(1, 0.1, 0.95, "hoeffding", "split", 3, 1, 10, loss=LOST)
    assert Monitor(served[0], made, loss=lambda full, early, given: [0.0]).report().risk == 0.1
