"""A ledger of answers replays what a live run does, row by row."""

import pytest
import torch

from exitwise import Engine
from exitwise.calibrate.budget import Bar
from exitwise.calibrate.ledger import Ledger, best_static, cheapest, record, remeasured, sweep
from exitwise.cost import etr
from exitwise.errors import CalibrationError
from exitwise.families import ofa


@pytest.fixture(scope="module")
def recorded():
    torch.manual_seed(0)
    model, _ = ofa.tiny()
    torch.manual_seed(1)
    ids = torch.randint(5, 95, (24, 7))
    inputs = {"input_ids": ids, "image_features": torch.randn(24, 2, 3, 320), "decoder_input_ids": ids[:, :3]}
    labels = model(**inputs).logits[:, -1].argmax(-1)
    labels[::4] = 7  # some answers are wrong at full depth

    def judge(logits):
        return logits.argmax(-1) == labels

    return model, inputs, labels, record(Engine(model, "mue", decoder_scope="last"), [(inputs, judge)])


def test_replay_is_the_live_run(recorded):
    """Depths and answers equal for thresholds at several quantiles; rows leave at three depths or more."""
    model, inputs, labels, ledger = recorded
    seen = set()
    for share in (0.3, 0.5, 0.8):
        chosen = {s: float(v[:, :-1].flatten().quantile(share)) for s, v in ledger.encoder.items()}
        chosen["decoder"] = float(ledger.decoder[..., :-1].flatten().quantile(share))
        live = Engine(model, "mue", decoder_scope="last", **chosen).run(**inputs)
        replayed = ledger.depths(chosen)
        for stream in ("image", "text"):
            assert torch.equal(replayed[stream], live.trace.depth[stream])
        assert torch.equal(replayed["decoder"], live.trace.depth["decoder"][:, 0])
        quality, saved = ledger.judge(replayed)
        assert quality == pytest.approx(float((live.logits[:, -1].argmax(-1) == labels).double().mean()))
        assert saved == pytest.approx(etr(live.trace))
        seen |= set(replayed["decoder"].tolist()) | set(replayed["image"].tolist())
    assert len(seen) >= 3


def test_static_depths_are_those_of_a_cut_run(recorded):
    model, inputs, labels, ledger = recorded
    for depths in ({"image": 1, "text": 3, "decoder": 2}, {"image": 4, "text": 4, "decoder": 4}):
        live = Engine(model, "static", **depths).run(**inputs)
        quality, saved = ledger.static(**depths)
        assert quality == pytest.approx(float((live.logits[:, -1].argmax(-1) == labels).double().mean()))
        assert saved == pytest.approx(etr(live.trace))


def test_the_cheapest_setting_keeps_its_share_and_beats_every_other_that_was_looked_at(recorded):
    *_, ledger = recorded
    found = cheapest(ledger, 0.9)
    assert found.quality >= 0.9 * ledger.full > 0
    assert found.etr == max(t["etr"] for t in found.tried) > 0
    assert ledger.judge(ledger.depths(found.settings)) == (found.quality, found.etr)
    assert cheapest(ledger, 1.0).etr <= found.etr


def test_the_best_static_depths_cost_no_more(recorded):
    *_, ledger = recorded
    depths, quality, saved = best_static(ledger, 0.5)
    assert saved >= 0.5
    assert quality >= ledger.static(image=2, text=2, decoder=2)[0]
    assert ledger.static(**depths) == (quality, saved)


def test_what_cannot_be_calibrated_is_refused(recorded):
    model, *_, ledger = recorded
    with pytest.raises(CalibrationError, match="keep=0"):
        cheapest(ledger, 0)
    with pytest.raises(CalibrationError, match="no calibration rows"):
        record(Engine(model), [])


def test_a_least_depth_holds_in_replay_as_it_does_live(recorded):
    """The threshold alone would let rows leave at layer 1 or 2: without the minimum the depths differ."""
    model, inputs, _, ledger = recorded
    chosen = {s: float(v[:, :-1].flatten().quantile(0.3)) for s, v in ledger.encoder.items()}
    live = Engine(model, "mue", decoder_scope="last", minimum=3, **chosen).run(**inputs).trace.depth
    replayed = ledger.depths(chosen, minimum=3)
    for stream in ("image", "text"):
        assert torch.equal(replayed[stream], live[stream])
        assert not torch.equal(replayed[stream], ledger.depths(chosen)[stream])


def test_a_margin_asks_for_more_than_the_mean(recorded):
    """What is chosen must clear the bar less its margin; what the plain mean chose does not."""
    *_, ledger = recorded
    plain, sure = cheapest(ledger, 0.9), cheapest(ledger, 0.9, margin=1.0)
    bar = Bar(ledger.marks({s: torch.full((24,), 4) for s in ledger.layers}), 0.9, 1.0)
    assert bar.held(ledger.marks(ledger.depths(sure.settings)))
    assert not bar.held(ledger.marks(ledger.depths(plain.settings)))
    assert sure.etr < plain.etr and sure.margin == 1.0


def test_one_threshold_for_both_streams_where_they_leave_together(recorded):
    model, inputs, labels, ledger = recorded
    joint = Engine(model, "mue", decoder_scope="last", decompose=False)
    book = remeasured(ledger, joint, [inputs])
    found = cheapest(book, 0.8, tied=True)
    assert all(t["settings"]["image"] == t["settings"]["text"] for t in found.tried) and found.etr > 0
    middle = float(book.encoder["image"][:, :-1].quantile(0.6))
    for chosen in (found.settings, {"image": middle, "text": middle, "decoder": found.settings["decoder"]}):
        live, depths = joint.with_settings(**chosen).run(**inputs), book.depths(chosen)
        for stream in ("image", "text"):
            assert torch.equal(depths[stream], live.trace.depth["image"])
        assert book.judge(depths)[0] == pytest.approx(float((live.logits[:, -1].argmax(-1) == labels).double().mean()))
    assert len(set(depths["image"].tolist())) > 1, "vacuous: all rows left at one depth"
    with pytest.raises(CalibrationError, match="24 rows"):
        remeasured(ledger, joint, [inputs, inputs])


def test_a_sweep_says_of_each_setting_what_the_ledger_says():
    """Entries of the grid against `judge` on the depths of their thresholds; tied ones have one threshold for both streams."""
    torch.manual_seed(3)
    book = Ledger(
        ("image", "text"), {"image": 2, "text": 3, "decoder": 2}, {"image": torch.rand(9, 2), "text": torch.rand(9, 3)},
        torch.rand(2, 3, 9, 2), torch.rand(2, 3, 9, 2) > 0.5,
    )  # fmt: skip
    entries = sweep(book, encoder=4, decoder=5)
    assert len({entry["etr"] for entry in entries}) > 5
    for entry in entries[::7]:
        assert (entry["quality"], entry["etr"]) == pytest.approx(book.judge(book.depths(entry["settings"])))
    assert all(entry["settings"]["image"] == entry["settings"]["text"] for entry in sweep(book, 4, 5, tied=True))
