"""The table of docs/reproducing-mue.md is written from runs, and nothing else on the page changes."""

import json

import pytest
from recipes.shipped import reproduced

PAGE = f"above\n{reproduced.MARKS[0]}\nold\n{reproduced.MARKS[1]}\nbelow\n"
ROW = {"quality": {"value": 80.04, "low": 70.0, "high": 90.0}, "depth": {"image": 2, "text": 6, "decoder": 1.5}, "etr": {"streams": 0.5}}
RUN = {
    "schema": 1, "status": "done", "name": "reproduce-mue-2-answer", "task": {"kind": "answer", "items": 1200},
    "table": {"number": "2", "main": "test"}, "config": {"preset": "corrected", "knobs": {"batch": "flat"}},
    "lines": [
        {"label": "few, all", "paper": {"test": 88.6, "kept": 0.999, "depths": [2.03, 6]}, "measured": ROW, "kept": 0.987},
        {"label": "other", "paper": {"test": 85.2, "kept": 0.955, "etr": 0.33}, "measured": None, "kept": None},
    ],
}  # fmt: skip


def test_the_table_is_that_of_the_runs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (tmp_path / "20260101-run.json").write_text(json.dumps(RUN))
    reproduced.main(tmp_path, page)
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith(f"{reproduced.MARKS[1]}\nbelow\n") and "old" not in text
    assert (
        "| table 2, answer, corrected, batch=flat (1,200 items) | few, all | 88.6 | 99.9 % | 2.03/6 layers "
        "| 80.0 [70.0, 90.0] | 98.7 % | 2.00 / 6.00 / 1.50 | 50 % |" in text
    )
    assert "|  | other | 85.2 | 95.5 % | 33 % | - | - | - | - |" in text


def test_without_runs_the_page_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(SystemExit, match="no run"):
        reproduced.main(tmp_path, page)
    assert page.read_text() == PAGE
