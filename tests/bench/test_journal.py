"""A run that is stopped goes on where it was: what is known is not asked again, and the record is that of an unbroken run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exitwise import Engine
from exitwise.bench import measure
from exitwise.bench.ask import Asked, Asker, Said
from exitwise.bench.journal import SAID, UNFINISHED, Journal

MEASURED = ("quality", "kept", "etr", "macs", "depth", "exits", "calls", "head_calls", "settings")


class Stopped(Exception):
    """Stands for the key that ends a run."""


class Watch:
    """Counts batches that are really asked, and stops the run at one of them; the clock's single items with pixels do not count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran, self.stop = 0, 0
        plain = Asker._batch

        def batch(asker: Asker, engine: Engine, part: Sequence[Asked], pixels: bool) -> Said:
            self.ran += not pixels
            if self.ran == self.stop:
                raise Stopped
            return plain(asker, engine, part, pixels)

        monkeypatch.setattr(Asker, "_batch", batch)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def judged(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {"split": "test", "calibration": "calibration", "model": str(place / "model"), "timed": 2, "gallery": 0, "out": out}
    return measure.judge("answer", place / "answer", **{**given, **changes})


def told(run: dict[str, Any]) -> str:
    """What a record says, times left out."""
    return json.dumps([{key: row[key] for key in MEASURED} for row in run["rows"]] + [run["groups"], run["sweep"]])


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(place: Path, tmp_path: Path, watch: Watch) -> None:
    whole = judged(place, tmp_path / "whole")
    every, watch.ran, watch.stop = watch.ran, 0, watch.ran - 6
    with pytest.raises(Stopped):
        judged(place, tmp_path / "broken")
    known = len(next((tmp_path / "broken" / UNFINISHED).glob(f"*/{SAID}")).read_text().splitlines())
    assert known >= 3
    watch.ran, watch.stop = 0, 0
    ticks: list[str] = []
    resumed = judged(place, tmp_path / "broken", tick=ticks.append)
    assert told(resumed) == told(whole)
    assert watch.ran < every - known  # what was said is not asked again, and neither are the calibration's batches
    assert f"{known} batches of a run that was stopped are taken over" in ticks and "thresholds" not in ticks
    assert not (tmp_path / "broken" / UNFINISHED).exists() and not (tmp_path / "whole" / UNFINISHED).exists()


def test_another_question_or_other_code_begins_anew(place: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(place, tmp_path / "whole", seed=1)
    every, watch.ran, watch.stop = watch.ran, 0, watch.ran - 2
    with pytest.raises(Stopped):
        judged(place, tmp_path / "broken", seed=0)
    watch.ran, watch.stop = 0, 0
    judged(place, tmp_path / "broken", seed=1)
    assert watch.ran == every
    watch.ran = 0
    monkeypatch.setattr(measure.record, "commit", lambda: ("another", False))
    judged(place, tmp_path / "broken", seed=0)
    assert watch.ran == every


def test_a_torn_line_is_forgotten_and_the_rest_stands(tmp_path: Path) -> None:
    first = Journal(tmp_path, "run", {"seed": 0})
    first.folder.mkdir(parents=True)
    line = json.dumps({"way": "mue", "places": [0, 1], "texts": ["a", "b"]})
    (first.folder / SAID).write_text(f'{line}\n{{"way": "mue", "pla', encoding="utf-8")
    assert Journal(tmp_path, "run", {"seed": 0}).batches == 1
    assert (first.folder / SAID).read_text(encoding="utf-8") == f"{line}\n"
    assert Journal(tmp_path, "run", {"seed": 1}).batches == 0
