"""What the bench says of promises and fronts: broken ones are counted, recordings go on where they stopped."""

import itertools
from dataclasses import replace

import pytest
import torch
from tests.ledgers import source

from exitwise.bench import fronts, promise, recording
from exitwise.calibrate.budget import NEVER
from exitwise.calibrate.ledger import DECODER, Ledger
from exitwise.errors import CheckpointError

ASKED = promise.Asked(rows=300, repeats=4, keep=0.95, confidence=0.9, path=8)


def test_a_truth_by_hand():
    """Four rows, two exits of the decoder; full depth is right in three, and the first exit loses one of them."""
    right = torch.tensor([[True, True], [False, True], [True, True], [True, False]])
    book = Ledger((), {DECODER: 2}, {}, torch.tensor([[0.9, 0], [0.9, 0], [0.1, 0], [0.9, 0]]), right)
    truth = promise.Truth.of(book)
    assert (
        truth.right.rows == 3 and truth.lost({DECODER: 0.5}) == pytest.approx(1 / 3) and truth.lost({DECODER: 0.0}) == pytest.approx(1 / 3)
    )
    assert truth.cost({DECODER: 0.5}) == pytest.approx((3 * 1 + 2) / 8)
    assert truth.hindsight(0.4)[1] == 0.5 + 1 / 8 and truth.hindsight(0.3)[1] == 1.0  # a lowest threshold is not exceeded by its own row


def test_promises_on_a_source_that_is_known():
    """What keeps its promise costs no less than hindsight (the command's grids differ a little); every pair has its row."""
    found = promise.simulate(source(2000, 0), ASKED)
    assert len(found["rows"]) == 13 and found["rows"][promise.COMMAND]["refused"] < 0.5
    assert all(row["violations"] or row["over_hindsight"] >= 0.99 for row in found["rows"].values())
    assert found["violation_rate"] == max(row["violations"] for row in found["rows"].values()) <= 0.5
    assert found["cost_over_hindsight"] == found["rows"][promise.COMMAND]["cost"] / found["hindsight"]["cost"]
    assert found["recorded"] == 2000 and found["full"] == pytest.approx(found["right"] / 2000)


def test_a_broken_promise_is_counted(monkeypatch):
    """A promise of the cheapest exits, which lose far more than 5 %, is broken each time; none at all is refused each time."""
    told = promise.promised

    def reckless(*args, **kwargs):
        found = told(*args, **kwargs)
        return replace(found, settings={"text": NEVER, DECODER: -1.0}, promise={**found.promise, "setting": 0})

    monkeypatch.setattr(promise, "promised", reckless)
    row = promise.simulate(source(2000, 0), replace(ASKED, repeats=2))
    assert row["rows"][promise.COMMAND]["violations"] == row["violation_rate"] == 1.0
    monkeypatch.setattr(
        promise, "promised", lambda *a, **k: replace(told(*a, **k), settings={}, promise={**told(*a, **k).promise, "setting": None})
    )
    row = promise.simulate(source(2000, 0), replace(ASKED, repeats=1))["rows"][promise.COMMAND]
    assert (row["violations"], row["refused"], row["cost"]) == (0, 1, 1)


def test_a_ledger_on_file_is_itself_and_a_damaged_one_is_refused(tmp_path):
    book = source(20, 0)
    recording.keep(book, tmp_path / "a" / "book.safetensors")
    again = recording.read(tmp_path / "a" / "book.safetensors")
    assert (again.streams, again.layers) == (book.streams, book.layers)
    for mine, theirs in itertools.zip_longest(
        (again.decoder, again.right, again.encoder["text"]), (book.decoder, book.right, book.encoder["text"])
    ):
        assert torch.equal(mine, theirs)
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "a" / "book.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        recording.read(tmp_path / "bad.safetensors")


def test_a_recording_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Three parts; the second fails at first. The next call records it and the third, and not the first again. Other items are others."""
    from exitwise import Engine
    from exitwise.bench.tasks import Item
    from exitwise.families import bart

    torch.manual_seed(0)
    engine, made = Engine(bart.tiny()[0]), []
    items = [Item(f"{n}.png", "x:1", tmp_path, f"prompt {n}", ("true",), ("true", "false")) for n in range(5)]
    monkeypatch.setattr(recording, "PART", 2)

    def ledger(asker, engine, asked, tick):
        made.append([item.name for item in asked])
        if len(made) == 2:
            raise KeyboardInterrupt
        return source(len(asked), len(made))

    monkeypatch.setattr(recording, "ledger", ledger)
    asker = type("Asker", (), {"prepare": lambda self, some, tick: some})()
    with pytest.raises(KeyboardInterrupt):
        recording.recorded(asker, engine, items, tmp_path)
    book = recording.recorded(asker, engine, items, tmp_path)
    assert made == [["0.png", "1.png"], ["2.png", "3.png"], ["2.png", "3.png"], ["4.png"]] and book.rows == 5
    recording.recorded(asker, engine, items, tmp_path)
    assert len(made) == 4
    recording.recorded(asker, engine, [replace(items[0], references=("false",)), *items[1:]], tmp_path)
    recording.recorded(asker, engine.with_settings(decoder_scope="last"), items[:2], tmp_path)
    assert made[4:] == [["0.png", "1.png"]] * 2


def test_the_front_that_is_timed_has_the_settings_that_are_told():
    for shape in fronts.seconds(rows=300, repeats=1).values():
        assert 19_000 <= shape["settings"] <= 21_000 and shape["front"] > 10 and len(shape["times_s"]) == 1
