"""A tiny model on tiny folders, judged from end to end: order, figures and files are what they should be."""

import json
from dataclasses import replace

import pytest
import torch

from exitwise import Engine
from exitwise.bench import measure, report, table, tasks
from exitwise.bench.ask import load_pair, scores
from exitwise.bench.demo import summary
from exitwise.bench.ways import Request, choose, keep
from exitwise.cost import etr
from exitwise.errors import InputError


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_answers_come_in_the_items_order_whatever_the_batches(place, asker, kind):
    """Items of two shapes and two sets of candidates are grouped; alone and together they get the same answers and depths."""
    items = asker.prepare(tasks.load(kind, place / kind, "test").items)
    engine = Engine(asker.model, "static", image=1, text=2, decoder=2)
    together = asker.ask(Engine(asker.model, "never"), items)
    alone = [asker.ask(Engine(asker.model, "never"), [one]) for one in items]
    assert together.texts == [one.texts[0] for one in alone]
    assert together.tokens == [one.tokens[0] for one in alone]
    apart = asker.ask(engine, items).trace
    assert apart.tokens["image"].tolist() == [a.grid[0] * a.grid[1] for a in items]
    assert apart.depth["text"].shape == (6,)


def test_features_given_are_the_pixels_run_through_the_stem(place, asker):
    items = asker.prepare(tasks.load("answer", place / "answer", "test").items)
    engine = Engine(asker.model, "never")
    assert asker.ask(engine, items).texts == asker.ask(engine, items, pixels=True).texts


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_a_run_holds_what_the_table_and_the_page_need(place, kind, tmp_path):
    run = measure.judge(
        kind, place / kind, "test", calibration="calibration", model=str(place / "model"), out=tmp_path, keep=0.5, timed=2, gallery=2
    )
    assert [row["key"] for row in run["rows"]] == ["full", "mue", "joint", "static", "random"]
    full, ours, joint, static, _ = run["rows"]
    assert full["depth"] == {"image": 3.0, "text": 3.0, "decoder": 3.0} and full["etr"]["streams"] == 0
    assert static["etr"]["streams"] >= ours["etr"]["streams"] - 0.02
    assert joint["depth"]["image"] == joint["depth"]["text"]
    assert ours["macs"] < full["macs"] and 0 < ours["macs_saved"] < 1
    assert sum(ours["exits"]["image"]) == 6
    written = json.loads((tmp_path / run["file"]).read_text())
    assert written["status"] == "done" and written["rows"] == json.loads(json.dumps(run["rows"]))
    assert max(len(line) for line in table.render(written, 80).splitlines()) <= 80
    assert "MuE" in report.render([written])
    assert summary(run)["items"] == 6 and summary(run)["kept"] == pytest.approx(ours["kept"]["value"], abs=1e-4)


def test_accuracy_is_that_of_the_untouched_model_asked_by_hand(place, asker):
    """Each item through the plain model; the likeliest first token among the candidates."""
    task = tasks.load("answer", place / "answer", "test")
    items = asker.prepare(task.items)
    said = asker.ask(Engine(asker.model, "never"), items).texts
    for one, text in zip(items, said, strict=True):
        with torch.no_grad():
            logits = asker.model(**asker.inputs([one], pixels=True), use_cache=False).logits[0, -1]
        ids = {c: asker.processor.tokens([c])[0][0] for c in one.item.candidates}
        assert text == max(ids, key=lambda c: float(logits[ids[c]]))
    assert scores("answer", ["true", "no"], task.items[:2]) == [100.0, 0.0]


def test_saved_exits_are_judged_as_they_are(place, tmp_path):
    model, _ = load_pair(str(place / "model"))
    Engine(model, "mue", image=-1.0, text=-1.0, decoder=-1.0).save(tmp_path / "exits")
    run = measure.judge(
        "answer", place / "answer", "test", model=str(place / "model"), exits=tmp_path / "exits", out=tmp_path, timed=2, gallery=1
    )
    assert [row["key"] for row in run["rows"]] == ["full", "saved"]
    assert run["rows"][1]["depth"] == {"image": 1.0, "text": 1.0, "decoder": 1.0}


def test_ways_that_were_kept_are_judged_again_as_they_were(place, asker, tmp_path):
    """The same settings and depths; the page says that they were chosen beforehand, and on how many items."""
    items = asker.prepare(tasks.load("answer", place / "answer", "calibration").items)
    ways, found = choose(asker, "answer", items, Request(keep=0.5))
    keep(ways, tmp_path / "exits")
    run = measure.judge(
        "answer", place / "answer", "test", model=str(place / "model"), exits=tmp_path / "exits", out=tmp_path, timed=2, gallery=1
    )
    assert [row["key"] for row in run["rows"]] == ["full", "mue", "joint", "static", "random"]
    assert {k: v for k, v in run["rows"][1]["settings"].items() if k in found["settings"]} == found["settings"]
    assert run["calibration"]["items"] == 6 and run["calibration"]["quality"] == found["quality"]
    assert "chosen beforehand on 6 others" in report.render([run])


def test_groups_are_judged_apart_and_add_up(place, tmp_path):
    run = measure.judge(
        "answer", place / "answer", "test", calibration="calibration", model=str(place / "model"), out=tmp_path, keep=0.5, timed=2
    )
    groups = run["groups"]
    assert {name: group["items"] for name, group in groups.items()} == {"question": 3, "statement": 3}
    for row in run["rows"]:
        parts = [group["ways"][row["key"]] for group in groups.values()]
        assert sum(part["quality"] for part in parts) / 2 == pytest.approx(row["quality"]["value"])
        for stream, depth in row["depth"].items():
            assert sum(part["depth"][stream] for part in parts) / 2 == pytest.approx(depth)
    assert "statement (3): full depth" in table.render(run, 80)


def test_pictures_go_through_the_stem_together_as_alone(place, asker):
    """Two shapes in turn: each item keeps its own pixels and features, in order."""
    items = tasks.load("answer", place / "answer", "test").items
    together, alone = asker.prepare(items, rows=4), [asker.prepare([item])[0] for item in items]
    for one, other in zip(together, alone, strict=True):
        assert one.item is other.item and one.grid == other.grid and torch.equal(one.pixels, other.pixels)
        torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-4)  # a convolution's sums depend on its batch


def test_random_exits_have_the_methods_histogram(place, asker):
    items = asker.prepare(tasks.load("answer", place / "answer", "test").items)
    ways, _ = choose(asker, "answer", items, Request(keep=0.5, rows=4))
    weights, chosen = ways[-1].settings, asker.ask(ways[1].engine, items).trace
    for stream, share in weights.items():
        assert sum(share) == pytest.approx(1)
        assert sum(d * s for d, s in enumerate(share, 1)) == pytest.approx(chosen.mean_depth(stream))


def test_captions_can_be_chosen_by_what_full_depth_says(place, asker):
    """At most the asked share of the cost; as many captions equal to full depth's own as said; references have no say."""
    items = asker.prepare(tasks.load("caption", place / "caption", "test").items)
    wish = Request(budget=0.7, trials=6, statics=2)
    ways, found = choose(asker, "caption", items, wish)
    full, ours = (asker.ask(way.engine, items) for way in ways[:2])
    equal = [a == b for a, b in zip(full.texts, ours.texts, strict=True)]
    assert found["quality"] == pytest.approx(100 * sum(equal) / len(equal)) and found["quality_full"] == 100
    assert found["etr"] >= 0.3 and found["etr"] == pytest.approx(etr(ours.trace))
    mute = [replace(one, item=replace(one.item, references=("nothing of the kind",))) for one in items]
    assert choose(asker, "caption", mute, wish)[1]["settings"] == found["settings"]


def test_answers_at_a_cost_stand_beside_static_depths_at_that_cost(place, asker):
    items = asker.prepare(tasks.load("answer", place / "answer", "calibration").items)
    ways, found = choose(asker, "answer", items, Request(budget=0.7))
    assert found["etr"] >= 0.3 and found["budget"] == 0.7
    said = {way.key: asker.ask(way.engine, items) for way in ways}
    assert etr(said["mue"].trace) == pytest.approx(found["etr"]) and etr(said["static"].trace) >= found["etr"] - 1e-9
    right = scores("answer", said["mue"].texts, [one.item for one in items])
    assert sum(right) / len(right) == pytest.approx(100 * found["quality"])


def test_a_folder_without_a_model_is_named():
    with pytest.raises(InputError, match="nowhere"):
        load_pair("nowhere")
