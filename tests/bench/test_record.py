"""A run is one file that is added and never changed, also when the run fails."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exitwise.bench import record
from exitwise.errors import InputError


def test_a_run_says_what_it_ran_on(tmp_path: Path) -> None:
    with record.run(tmp_path, "demo-answer", {"keep": 0.99}, seed=3) as run:
        run["rows"] = [1]
    (file,) = tmp_path.glob("*.json")
    found = record.read(file)
    assert found["status"] == "done" and found["config"] == {"keep": 0.99} and found["seed"] == 3 and found["rows"] == [1]
    assert found["versions"]["torch"] and found["machine"]["cores"] and found["seconds"] >= 0 and 0 < found["peak_gib"] < 100
    assert {"commit", "dirty"} <= set(found)


def test_a_failed_run_stays_with_its_reason_and_what_it_had(tmp_path: Path) -> None:
    with pytest.raises(InputError), record.run(tmp_path, "demo-answer", {}, seed=0) as run:
        run["rows"] = ["first"]
        raise InputError("row 7 is bad")
    (file,) = tmp_path.glob("*.json")
    found = record.read(file)
    assert found["status"] == "failed" and found["error"] == "InputError: row 7 is bad" and found["rows"] == ["first"]
    assert record.latest(tmp_path) == []


def test_no_run_overwrites_another_and_the_newest_is_found(tmp_path: Path) -> None:
    for number in range(3):
        with record.run(tmp_path, "demo-answer", {}, seed=number):
            pass
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == 3 and sorted(record.read(file)["seed"] for file in files) == [0, 1, 2]
    assert [run["seed"] for run in record.latest(tmp_path, "demo-")] == [2]
    assert record.latest(tmp_path, "bench-") == []


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"schema": 99})])
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="x.json"):
        record.read(tmp_path / "x.json")
    assert record.latest(tmp_path) == []


def test_figures_of_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    """A later run takes the place of its own keys only, runs that end at once lose nothing, and a broken file is not written over."""
    assert record.summarise(tmp_path / "new", {"b": 1.0}) == {"b": 1.0}
    assert record.summarise(tmp_path / "new", {"a": None, "b": 2.0}) == {"a": None, "b": 2.0}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: record.summarise(tmp_path / "new", {f"c{i}": float(i)}), range(40)))
    assert len(json.loads((tmp_path / "new" / "summary.json").read_text())) == 42
    for text in ("{", "[1]"):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(InputError, match="Mend or delete it"):
            record.summarise(tmp_path, {"a": 1.0})
        assert (tmp_path / "summary.json").read_text() == text
