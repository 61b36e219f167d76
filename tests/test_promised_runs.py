"""Promises by live runs: as often kept as was said, on few runs, and refused where they cannot be made."""

import math

import pytest
import torch
from tests.ledgers import LAYERS, Live, source

from exitwise.bench.choosing import steady
from exitwise.bench.metrics import CiderScorer, cider
from exitwise.calibrate.budget import NEVER
from exitwise.calibrate.guarantee import Promise, split_rows
from exitwise.calibrate.promised_runs import Asked, promised_runs
from exitwise.errors import CalibrationError, KnobError


def lost(full, early, rows):
    """Right at full depth and not with exits."""
    return [max(a - b, 0.0) for a, b in zip(full, early, strict=True)]


def score(outputs, rows):
    return outputs


def test_what_is_promised_holds_on_new_rows_as_often_as_was_said():
    """100 draws of 500 rows at confidence 0.9, judged on 20,000 new rows. 10 failures are allowed in the mean; 19 is three standard
    deviations above (sqrt(100 * 0.1 * 0.9) = 3). Most draws must promise something that saves, or the test is empty."""
    truth = source(20_000, 10_000)
    right = truth.marks(truth.whole())
    failures = saved = 0
    for seed in range(100):
        found = promised_runs(Live(source(500, seed)), range(500), LAYERS, Asked(0.93, 0.9, loss=lost, quality=score, trials=12, seed=seed))
        failures += float((right * (1 - truth.marks(truth.depths(found.settings)))).mean()) > 0.07
        saved += found.etr > 0.1
    assert saved > 60 and failures <= 19


@pytest.mark.parametrize("trials", [2, 5, 12])
def test_at_most_so_many_settings_are_run_and_the_first_that_fails_ends_it(trials):
    run = Live(source(600, 3))
    found = promised_runs(run, range(600), LAYERS, Asked(0.93, 0.9, loss=lost, quality=score, trials=trials))
    assert len(run.ran) <= trials
    tests = run.ran[-len(found.tried) :]
    assert [t["settings"] for t in found.tried] == tests
    told = Promise.from_dict(found.promise)
    assert told.passed in (len(tests), len(tests) - 1)
    assert (told.rows, told.ordering_rows, told.procedure) == (400, 200, "fixed_sequence")
    if told.setting is not None:
        assert found.settings == tests[told.setting] and told.observed == found.tried[told.setting]["loss"] < 0.07


def test_nothing_is_tested_after_the_first_that_fails():
    """The ordering rows make a path of three settings or more; of those tested, the second loses all, and the others nothing."""
    turns = []

    def loss(full, early, rows):
        if len(rows) == 200:
            return lost(full, early, rows)
        turns.append(len(turns))
        return [float(turns[-1] == 1)] * len(rows)

    found = promised_runs(Live(source(600, 3)), range(600), LAYERS, Asked(0.7, 0.9, loss=loss, quality=score, trials=16))
    assert [t["loss"] for t in found.tried] == [0, 1] and found.promise["passed"] == 1
    assert found.promise["settings"] > 2 and found.settings == found.tried[0]["settings"]


def test_no_row_both_chooses_and_judges():
    """The rows of the search and of the tests are the two parts of the split, and do not meet."""
    seen = []
    live = Live(source(300, 0))

    def run(settings, record, rows):
        seen.append(tuple(rows))
        return live(settings, record, rows)

    promised_runs(run, range(300), LAYERS, Asked(0.9, 0.9, loss=lost, quality=score, trials=8, seed=5))
    first, rest = split_rows(300, 5)
    assert set(seen) == {tuple(first.tolist()), tuple(rest.tolist())} and not set(first) & set(rest)


def test_too_few_rows_promise_nothing_and_say_how_many_would_do():
    found = promised_runs(Live(source(40, 0)), range(40), LAYERS, Asked(0.99, loss=lost, quality=score))
    told = Promise.from_dict(found.promise)
    assert told.setting is None and found.etr == 0 and found.quality == found.quality_full
    assert set(found.settings.values()) == {NEVER}
    assert told.rows_if_lossless > 40 and "full depth" in str(told)
    with pytest.raises(CalibrationError, match="2 rows"):
        promised_runs(Live(source(40, 0)), range(2), {"text": 1}, Asked(0.99))
    with pytest.raises(CalibrationError, match="3 calibration rows for 4 exits"):
        promised_runs(Live(source(40, 0)), range(11), LAYERS, Asked(0.99))


def test_the_loss_of_a_quality_by_hand():
    """Half of the rows have quality 4 at full depth, half 0: mean 2. keep 0.9 of it may lose 0.2; with scale 4 the risk is 0.05, with the
    default 2 it is 0.1. Gains do not make up for drops."""
    from exitwise.calibrate.promised_runs import _losses

    late, early, rows = [4.0, 0.0], [3.0, 3.0], range(2)
    losses, risk, said = _losses(None, rows, Asked(0.9, quality=score, scale=4.0), 2.0)
    assert losses(late, early, rows).tolist() == [0.25, 0.0] and risk == pytest.approx(0.05) and "share of 4" in said
    losses, risk, _ = _losses(None, rows, Asked(0.9, quality=score), 2.0)
    assert losses(late, [1.0, 0.0], rows).tolist() == [1.0, 0.0] and risk == pytest.approx(0.1)
    losses, risk, said = _losses(None, rows, Asked(0.9), 1.0)
    assert losses(["a", "b"], ["a", "c"], rows).tolist() == [0.0, 1.0] and said == "an output that is not full depth's"
    with pytest.raises(KnobError, match="scale=0.1"):
        _losses(None, rows, Asked(0.9, quality=score, scale=0.1), 2.0)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda full, early, rows: [math.nan] * len(rows), "nan"),
        (lambda full, early, rows: [1.5] * len(rows), "1.5"),
        (lambda full, early, rows: [-0.5] * len(rows), "-0.5"),
        (lambda full, early, rows: [0.0], "1 figures for"),
    ],
)
def test_losses_that_are_none_are_refused(loss, says):
    with pytest.raises(CalibrationError, match=says):
        promised_runs(Live(source(60, 0)), range(60), LAYERS, Asked(0.9, loss=loss, quality=score))


def test_a_caption_is_judged_alike_whatever_stands_beside_it():
    """Document frequencies of CIDEr come from the ordering items; with the same items in both places it is plain CIDEr."""
    texts = ["a red dog", "a blue cat on a mat", "two men on a boat", "a dog in the snow"]
    references = [[t, f"{t} today"] for t in texts]
    said = ["a red dog", "a cat", "two men", "a dog in snow"]
    same = CiderScorer(references, corpus=references)
    assert [same.score(t, k) for k, t in enumerate(said)] == pytest.approx(list(cider(said, references).items))
    items = [type("Asked", (), {"item": type("Item", (), {"references": r})})() for r in references * 3]
    quality = steady("caption", items)
    whole = quality(said * 3, items)
    assert quality(said[:1], items[:1]) == whole[:1] and quality(said[1:2], items[5:6]) == whole[1:2] and min(whole[:4]) > 0
    order, _ = split_rows(12, 0)
    by_hand = CiderScorer([references[0]], corpus=[items[k].item.references for k in order])
    assert whole[0] == by_hand.score(said[0], 0)
    assert torch.tensor(whole).isfinite().all()
