"""The page is drawn from JSON alone, holds everything in itself, and shows what the JSON says."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from exitwise.bench import report

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def made_up_run(kind: str = "answer", gallery: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A run with plausible figures, in the form that measure.py writes."""
    dice = random.Random(3)
    layers = {"image": 6, "text": 6, "decoder": 6}
    ways = [
        ("full", "full depth", 1.0, 0.0),
        ("mue", "MuE", 0.992, 0.52),
        ("joint", "MuE, streams not apart", 0.95, 0.4),
        ("static", "static depth, equal cost", 0.93, 0.52),
        ("random", "random exits, equal cost", 0.81, 0.5),
    ]
    rows = []
    for key, label, kept, saved in ways:
        exits = {stream: [dice.randint(1, 40) for _ in range(5)] + [9] for stream in layers}
        if key == "full":
            exits = {stream: [0] * 5 + [100] for stream in layers}
        depth = {s: sum(n * (i + 1) for i, n in enumerate(c)) / sum(c) for s, c in exits.items()}
        quality = 71.4 * kept
        rows.append(
            {
                "key": key,
                "label": label,
                "method": "mue",
                "settings": {"image": 0.97},
                "items": 200,
                "layers": layers,
                "depth": depth,
                "quality": {"value": quality, "low": quality - 5, "high": quality + 4.5},
                "kept": {"value": kept, "low": kept - 0.02, "high": kept + 0.01},
                "etr": {"streams": saved, "deepest": saved - 0.1, "tokens": saved + 0.05},
                "macs": 1.2e9 * (1 - 0.6 * saved),
                "macs_saved": 0.6 * saved,
                "calls": 18 * (1 - saved),
                "head_calls": 1.0,
                "exits": exits,
                "wallclock_saved": 0.7 * saved,
                "wallclock_ms": {"median": 31 * (1 - 0.7 * saved), "q1": 29 * (1 - 0.7 * saved), "q3": 34.2 * (1 - 0.7 * saved)},
            }
        )
    curve = [0.71, 0.86, 0.93, 0.96, 0.975, 0.98]
    item = {
        "item": "a.png",
        "picture": PIXEL,
        "size": [1, 1],
        "prompt": "is <there> a dog?",
        "references": ["yes"],
        "credit": "CC BY, by <someone>",
        "answers": {
            key: {"text": "yes", "tokens": [["yes", 2], ["</s>", 5]], "score": 1.0, "depth": {"image": 2, "text": 5}}
            for key in ("full", "mue")
        },
    }
    return {
        "schema": 1,
        "name": f"demo-{kind}",
        "status": "done",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 61.0,
        "peak_gib": 1.2,
        "seed": 0,
        "commit": "abc",
        "dirty": False,
        "versions": {"torch": "2"},
        "machine": {"device": "cpu", "threads": 2},
        "config": {"model": "shipped"},
        "task": {
            "kind": kind,
            "metric": "CIDEr" if kind == "caption" else "accuracy",
            "folder": "sample",
            "split": "test",
            "items": 200,
            "skipped": [],
        },
        "calibration": {"items": 120},
        "thresholds": {"image": 0.95, "text": 0.97, "decoder": 1.0},
        "rows": rows,
        "saturation": {
            s: {"mean": [c + i / 100 for c in curve], "q1": [c - 0.03 for c in curve], "q3": [c + 0.02 for c in curve]}
            for i, s in enumerate(layers)
        },
        "sweep": {"static": [{"etr": 0.9 - 0.1 * i, "quality": 55 + 2 * i} for i in range(8)]},
        "gallery": gallery if gallery is not None else [item],
    }


class Page(HTMLParser):
    """Every tag opened is closed, in order; addresses that the page would load are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value and tag != "a"]
        if tag not in ("meta", "link", "br", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = Page(report.render([made_up_run("answer"), made_up_run("caption")]))
    assert page.open == []
    assert all(address.startswith(("data:", "#")) for address in page.loads), page.loads
    assert "data:" + "image/png" in "".join(page.loads)


def test_the_page_needs_nothing_but_json_and_says_what_it_says() -> None:
    run = json.loads(json.dumps(made_up_run()))
    words = Page(report.render([run])).words
    assert "99.2 %" in words and "52 %" in words and "70.83" in words
    assert all(row["label"] in words for row in run["rows"])
    assert report.render([run]) == report.render([run])


def test_words_of_the_data_are_shown_and_never_run() -> None:
    text = report.render([made_up_run()])
    assert "is &lt;there&gt; a dog?" in text and "<there>" not in text and "&lt;someone&gt;" in text


def test_each_token_carries_its_depth_and_shade() -> None:
    text = report.render([made_up_run()])
    found = re.findall(r'class="token" style="background:rgb\((\d+),\d+,\d+\)[^"]*">([^<]*)<sub>(\d)</sub>', text)
    assert ("yes", "2") in [(word, depth) for _, word, depth in found]
    by_depth = {depth: int(red) for red, _, depth in found}
    assert by_depth["2"] > by_depth["5"], "a word that left early is paler"


def test_a_run_without_a_result_is_named_not_drawn(tmp_path: Path) -> None:
    failed = {"name": "bench-caption", "status": "failed", "started": "2026", "error": "InputError: no image"}
    file = report.write([failed], tmp_path / "deep" / "report.html")
    assert "InputError: no image" in file.read_text()


@pytest.mark.parametrize(("value", "said"), [(0.456, "46 %"), (-0.02, "−2 %"), (None, "–"), (float("nan"), "–")])
def test_percent(value: float | None, said: str) -> None:
    assert report._percent(value) == said
