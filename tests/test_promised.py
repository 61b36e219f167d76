"""Thresholds with a promise, from a ledger whose truth is known."""

import pytest
import torch
from tests.ledgers import LAYERS, source

from exitwise.calibrate.budget import NEVER, Calibration
from exitwise.calibrate.guarantee import Promise
from exitwise.calibrate.ledger import Ledger
from exitwise.calibrate.promised import promised
from exitwise.errors import CalibrationError


def told(found: Calibration) -> Promise:
    """What was promised."""
    assert found.promise is not None
    return Promise.from_dict(found.promise)


def test_what_is_promised_holds_on_new_rows_as_often_as_was_said():
    """200 draws of 600 rows at confidence 0.9, each judged on 20,000 new rows. 20 failures are allowed in the mean; 33 is three standard
    deviations above (sqrt(200 * 0.1 * 0.9) = 4.2). Most draws must promise something, or the test is empty."""
    truth = source(20_000, 10_000)
    right = truth.right[-1, :, -1]
    failures = made = 0
    for seed in range(200):
        found = promised(source(600, seed), keep=0.95, confidence=0.9, encoder=3, decoder=20, seed=seed)
        made += told(found).setting is not None
        kept = truth.marks(truth.depths(found.settings))[right].mean()
        failures += float(kept) < 0.95
    assert made > 180 and failures <= 33


def luck(rows: int, seed: int) -> Ledger:
    """Every early exit, by itself, loses 5.5 % of the answers; similarities say nothing. Only full depth keeps 95 %."""
    dice = torch.Generator().manual_seed(seed)
    encoder = torch.rand(rows, 3, generator=dice) * 0.05 + torch.tensor([0.3, 0.5, 0.7])
    decoder = torch.rand(3, rows, 4, generator=dice) * 0.05 + torch.tensor([0.2, 0.4, 0.6, 0.8])
    right = torch.rand(3, rows, 4, generator=dice) > 0.055
    right[-1, :, -1] = True
    return Ledger(("text",), LAYERS, {"text": encoder}, decoder, right)


def test_settings_that_are_only_lucky_are_seldom_promised():
    """The rows that order the settings must not test them: the luckiest of many would pass. 100 draws at confidence 0.9, each judged on
    20,000 new rows; 10 failures are allowed in the mean, 19 is three standard deviations above (sqrt(100 * 0.1 * 0.9) = 3)."""
    truth, failures = luck(20_000, 10_000), 0
    for seed in range(100):
        found = promised(luck(900, seed), keep=0.95, confidence=0.9, encoder=6, decoder=12, seed=seed)
        failures += float(truth.marks(truth.depths(found.settings)).mean()) < 0.95
    assert failures <= 19


def test_too_few_rows_promise_nothing_and_say_how_many_would_do():
    found = promised(source(60, 0), keep=0.99)
    assert found.settings == {"text": NEVER, "decoder": NEVER} and found.etr == 0 and found.quality == found.quality_full
    enough = told(found).rows_if_lossless
    assert enough is not None and enough > 60 and "full depth" in str(told(found))


def test_rows_that_full_depth_gets_wrong_neither_help_nor_harm():
    """They are left out: twice as many wrong rows change nothing."""
    book = source(900, 1)
    wrong = (~book.right[-1, :, -1]).nonzero()[:, 0]
    more = Ledger.cat([book, book.select(wrong)])
    first, second = promised(book, keep=0.95), promised(more, keep=0.95)
    assert first.settings == second.settings and told(first) == told(second) and told(first).rows < 900 * 2 / 3
    assert told(first).setting is not None and first.etr > 0.2


def test_what_cannot_be_promised_is_refused():
    with pytest.raises(CalibrationError, match="keep=1"):
        promised(source(60, 0), keep=1.0)
    book = source(60, 0)
    with pytest.raises(CalibrationError, match="gets 0 of 60 rows right"):
        promised(Ledger(book.streams, LAYERS, book.encoder, book.decoder, torch.zeros_like(book.right)))
