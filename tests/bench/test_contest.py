"""Every method on one model: who takes part, what is run, what is written; stopped and shared runs; the recommendation; the report."""

import json
import re

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from exitwise import Engine, methods
from exitwise.bench import contest, record, tasks
from exitwise.bench.advice import advice
from exitwise.bench.cells import Cells
from exitwise.bench.contest import Contest, Wish
from exitwise.bench.contest_table import render
from exitwise.bench.entries import entries, given_exits, named
from exitwise.bench.lessons import of_texts
from exitwise.bench.report import write
from exitwise.bench.schooling import Schooling, trainable, trained
from exitwise.bench.spans import swept, thresholds
from exitwise.bench.subjects import Pictures, Texts, layers_of
from exitwise.bench.texts import Encoded, Example
from exitwise.calibrate.budget import depths_at
from exitwise.cost import etr
from exitwise.errors import CheckpointError, InputError, KnobError, UnknownName

WISH = Wish(keep=0.9, points=3, timed=0)


class Letters:
    """A tokenizer of letters, which is all that `Encoded` asks of one."""

    pad_token_id = 0

    def __call__(self, first, second=None, truncation=True, max_length=32):
        texts = first if second is None else [f"{a} {b}" for a, b in zip(first, second, strict=True)]
        ids = [[1, *(2 + ord(c) % 20 for c in text)][:max_length] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=2,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.bert.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        model.classifier.weight.mul_(30)
    return model


def rows_of(model, count, seed):
    """Rows that the model gets right but for each fifth."""
    dice = torch.Generator().manual_seed(seed)
    texts = [
        "".join(chr(97 + int(c)) for c in torch.randint(0, 20, (int(n),), generator=dice))
        for n in torch.randint(3, 12, (count,), generator=dice)
    ]
    said = []
    for text in texts:
        inputs, _ = Encoded([Example(text, None, 0)], Letters(), 32).batch([0])
        with torch.no_grad():
            said.append(int(model(**inputs).logits.argmax()))
    return [Example(text, None, 1 - s if place % 5 == 0 else s) for place, (text, s) in enumerate(zip(texts, said, strict=True))]


@pytest.fixture(scope="module")
def subject(classifier):
    return Texts(classifier, Letters(), rows_of(classifier, 40, 1), rows_of(classifier, 50, 2), "letters", 32)


@pytest.fixture(scope="module")
def exits(classifier, tmp_path_factory):
    """Trained exits of two methods, saved as `exitwise train --method` does."""
    folder = tmp_path_factory.mktemp("exits")
    batch = of_texts(Encoded(rows_of(classifier, 64, 3), Letters(), 32))
    for name in ("deebert", "berxit"):
        engine = trainable(classifier, name)
        trained(engine, batch, folder / name / "training", Schooling(steps=3))
        engine.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def compared(subject, exits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    able, unable = entries(subject, named("all"), given_exits([str(exits)], subject.model))
    return out, Contest(subject, WISH, out).run(able, unable)


def test_who_fits_takes_part_and_who_does_not_is_named_with_a_reason(compared):
    _, run = compared
    taking = {line["name"] for line in run["contest"]}
    assert taking == {"mue", "deebert (entropy)", "deebert (maximum)", "berxit", "static", "random", "oracle"}
    reasons = {each["name"]: each["reason"] for each in run["unfit"]}
    assert {name.split(" ")[0] for name in {*taking, *reasons}} == {*methods.names()} - {"never"}  # nobody is left out silently
    assert "exitwise train MODEL --method pabee" in reasons["pabee"] and "decoder" in reasons["calm (softmax)"]


def test_a_point_is_what_a_live_run_says(compared, subject, exits):
    """Quality, ETR and depth of every setting, against an engine run by hand; MACs against those of full depth."""
    _, run = compared
    line = next(line for line in run["contest"] if line["name"] == "mue")
    assert line["points"]
    for point in line["points"]:
        out = subject.outcome(Engine(subject.model, "mue", **point["settings"]), "judged")
        assert point["quality"] == pytest.approx(sum(out.marks) / 50) and point["etr"] == pytest.approx(etr(out.trace), abs=1e-12)
        assert 0 < point["etr"] < 1 and 0 < point["macs_saved"] < 1


def test_areas_and_pairs_are_there_for_all_but_hindsight(compared):
    _, run = compared
    for unit in ("etr", "macs"):
        areas = run["comparison"][unit]["areas"]
        assert set(areas) <= {line["name"] for line in run["contest"]} - {"oracle"} and len(areas) >= 3
        assert len(run["comparison"][unit]["pairs"]) == len(areas) * (len(areas) - 1) // 2
        assert all(area["low"] <= area["value"] <= area["high"] for area in areas.values())


def test_every_method_is_a_run_of_its_own_and_nothing_is_left_behind(compared):
    out, run = compared
    assert {record.read(out / line["file"])["status"] for line in run["contest"]} == {"done"}
    assert not (out / ".unfinished").exists() and record.read(out / run["file"])["recommendation"] == run["recommendation"]


def test_a_comparison_that_was_stopped_goes_on(subject, exits, tmp_path, monkeypatch):
    """Stopped in the third method: the first two are not run again, of the third only what is missing; the result is the unbroken one's."""
    able, _ = entries(subject, ["mue", "static", "random"], {})
    whole = Contest(subject, WISH, tmp_path / "whole").run(able)
    asked = []

    def count(engine, split, first=None, real=subject.outcome):
        asked.append((engine.method_name, split))
        if stop and asked.count(("random", "judged")) == 1:
            raise KeyboardInterrupt
        return real(engine, split, first)

    monkeypatch.setattr(subject, "outcome", count)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        Contest(subject, WISH, tmp_path / "out").run(able)
    stop, before = False, len(asked)
    again = Contest(subject, WISH, tmp_path / "out").run(able)
    points = len(again["contest"][2]["points"])
    assert points and asked[before:] == [("random", "judged")] * points  # nothing on the calibration split, nothing of the others
    assert again["comparison"] == whole["comparison"] and again["recommendation"] == whole["recommendation"]


def test_other_data_begin_anew(subject, classifier, tmp_path, monkeypatch):
    able, _ = entries(subject, ["static"], {})
    Contest(subject, WISH, tmp_path).run(able)
    other = Texts(classifier, Letters(), rows_of(classifier, 40, 1), rows_of(classifier, 30, 9), "letters", 32)
    found = Contest(other, WISH, tmp_path).run(entries(other, ["static"], {})[0])
    assert found["task"]["items"] == 30 and len(record.latest(tmp_path, "method-")) == 1
    assert len(list(tmp_path.glob("*method-classify-static*.json"))) == 2


def test_two_runs_in_one_folder_do_not_harm_each_other(tmp_path):
    """Both write the same cell at once, one clears the folder while the other goes on: each gets what it made, and never half a file."""
    one, other = Cells(tmp_path, "x", "k"), Cells(tmp_path, "x", "k")
    assert one.once("a", lambda: other.once("a", lambda: [1, 2])) == [1, 2] == other.once("a", lambda: pytest.fail("made twice"))
    assert not list(one.folder.glob("*.part"))

    def cleared():
        one.done()
        return [3]

    assert other.once("b", cleared) == [3] and other.once("b", lambda: pytest.fail("made twice")) == [3]
    (other.folder / "b.json").write_text("{ torn")
    assert other.once("b", lambda: [4]) == [4]


def test_thresholds_stand_between_measured_values_and_spread_the_depths():
    sure = torch.rand(300, 6, generator=torch.Generator().manual_seed(0))
    found = thresholds(sure, 5)
    depths = [float(depths_at(sure.double(), t).double().mean()) for t in found]
    assert depths == sorted(depths) and len(found) == 5 and depths[0] == 1.0 and depths[-1] > 4
    assert not any(bool((sure.double() == t).any()) for t in found)
    assert thresholds(torch.full((3, 4), float("nan")), 5) == []
    streaks = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.5]])  # what nothing may lie below: 0 is a streak of none, and never leaves
    assert thresholds(streaks, 5, lowest=0.0) == [0.25] and thresholds(streaks, 5)[0] < 0
    assert thresholds(torch.zeros(2, 3), 5, lowest=0.0) == []


def test_a_long_sweep_is_thinned_over_all_costs(classifier):
    engine = Engine(classifier, "static")
    known = [({"text": d}, {"text": float(d)}) for d in (1, 2, 3, 4)]
    assert swept(known, engine, 3) == [{"text": 1}, {"text": 2}, {"text": 3}]  # full depth is no setting


def test_layers_of_items_add_up_to_etr(place, asker):
    held = tasks.load("caption", place / "caption", "test")
    items = asker.prepare(held.items)
    for engine in (Engine(asker.model, "never"), Engine(asker.model, "static", image=1, text=2, decoder=2)):
        trace = asker.ask(engine, items).trace
        ran, most = layers_of(trace, len(items))
        assert 1 - sum(ran) / sum(most) == pytest.approx(etr(trace), abs=1e-12)


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_the_unified_model_is_compared_on_both_tasks(place, asker, tmp_path, kind):
    held, judged = (tasks.load(kind, place / kind, split) for split in ("calibration", "test"))
    subject = Pictures(asker, held, judged, kind)
    able, unable = entries(subject, ["mue", "deebert", "calm", "deecap", "static"], {})
    assert {e.name for e in able} == {"mue", "deebert (entropy)", "deebert (maximum)", "calm (softmax)", "calm (saturation)", "static"}
    assert next(e for e in able if e.name.startswith("deebert")).note and {u.name for u in unable} == {"deecap", "calm (classifier)"}
    run = Contest(subject, Wish(keep=0.5, points=2, timed=1), tmp_path).run(able[:1] + able[-1:], unable)
    assert run["task"]["kind"] == kind and all(line["points"] for line in run["contest"])
    chosen = [line["chosen"] for line in run["contest"] if line["chosen"]]
    assert all("time_saved" in one for one in chosen)


# -- what is said of it -----------------------------------------------------------------------------------------------------------------


def line(name, saved, kept=1.0, control=False):
    chosen = {"macs_saved": saved, "etr": saved, "kept": {"value": kept, "low": kept - 0.01, "high": kept + 0.01}}
    return {"name": name, "control": control, "chosen": None if saved is None else chosen}


def said(*lines, pairs=()):
    run = {"config": {"keep": 0.99}, "task": {"metric": "accuracy", "items": 9}, "contest": list(lines)}
    return advice({**run, "comparison": {"etr": {"pairs": list(pairs)}}})


def test_the_recommendation_is_the_greatest_saving_with_its_reason():
    text = said(line("a", 0.2), line("b", 0.4), line("c", None), line("luck", 0.9, control=True))
    assert text.startswith("Take b: ") and "saves 40 % of the MACs" in text and "a, the next, saves 20 %" in text and text.count(". ") == 0


def test_the_recommendation_says_what_is_in_doubt():
    pair = {"better": "b", "worse": "a", "value": 0.1, "low": -0.1, "high": 0.3}
    text = said(line("a", 0.2), line("b", 0.4, kept=0.985), pairs=[pair])
    assert "not told apart from that of a" in text and "less than the 99 % that was asked" in text


def test_what_fell_short_by_more_than_luck_is_passed_over():
    assert said(line("a", 0.2), line("b", 0.4, kept=0.9)).startswith("Take a: ")
    none = said(line("b", 0.4, kept=0.9), line("c", 0.3, kept=0.8))
    assert none.startswith("Take none: ") and "b came nearest with 90.0 %" in none and "by more than luck" in none


def test_nothing_is_recommended_where_nothing_is_saved():
    assert said(line("a", None), line("b", 0.001)).startswith("Take none: run at full depth")


def test_the_table_fits_a_terminal_and_the_report_is_drawn_from_the_file_alone(compared, tmp_path):
    out, run = compared
    text = render(run)
    assert max(map(len, text.splitlines())) <= 80 and "oracle*" in text and "points [" in text
    page = write([json.loads((out / run["file"]).read_text())], tmp_path / "page.html").read_text()
    assert run["recommendation"].split(":")[0] in page and page.count("<svg") >= 3 and "Not compared" in page
    assert not re.search(r'(src|href)="http', page)


# -- exits, given and trained -----------------------------------------------------------------------------------------------------------


def test_exits_are_given_by_name_or_as_a_folder_of_them(exits, classifier):
    assert set(given_exits([str(exits)], classifier)) == {"deebert", "berxit"}
    assert set(given_exits([f"deebert={exits / 'deebert'}"], classifier)) == {"deebert"}
    with pytest.raises(InputError, match="exits of deebert, not of pabee"):
        given_exits([f"pabee={exits / 'deebert'}"], classifier)
    with pytest.raises(InputError, match="holds no exitwise.json"):
        given_exits([str(exits / "deebert" / "training")], classifier)


def test_names_of_methods():
    assert "never" not in named("all") and named("mue, static,mue") == ["mue", "static"]
    with pytest.raises(UnknownName, match="pabee"):
        named("pabe")
    with pytest.raises(InputError, match="names no method"):
        named(" , ")


def test_training_exits_leaves_the_model_as_it_is_and_goes_on(classifier, tmp_path):
    """Also for a method whose paper trains the base in turn: those steps give way. Trained anew from the same folder, it is read."""
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    batch = of_texts(Encoded(rows_of(classifier, 64, 3), Letters(), 32))
    engine = trainable(classifier, "berxit")
    fresh = {name: value.clone() for name, value in engine.exits.state_dict().items()}
    first = trained(engine, batch, tmp_path, Schooling(steps=4, data="a"))
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert all(p.requires_grad for p in classifier.parameters())
    assert any(not torch.equal(fresh[name], value) for name, value in first.state_dict().items())
    again = trained(trainable(classifier, "berxit"), lambda step: pytest.fail("trained twice"), tmp_path, Schooling(steps=4, data="a"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(CheckpointError, match="another data"):
        trained(trainable(classifier, "berxit"), batch, tmp_path, Schooling(steps=4, data="b"))


@pytest.mark.parametrize(("alike", "reads"), [(False, "first"), (True, "mean")])
def test_where_the_first_token_says_nothing_exits_read_the_mean(classifier, tmp_path, alike, reads):
    """A layer whose first token is made the same for all rows is what an encoder has that was trained to be averaged."""
    layer = classifier.bert.encoder.layer[0]

    def flatten(_, __, out):
        first = torch.ones_like(out[:, :1]) if alike else 3 * out[:, 1:2]  # else it differs as the word does that stands there
        return torch.cat([first, out[:, 1:]], 1)

    hook = layer.register_forward_hook(flatten)
    try:
        batch = of_texts(Encoded(rows_of(classifier, 64, 3), Letters(), 32))
        assert trained(trainable(classifier, "deebert"), batch, tmp_path, Schooling(steps=1)).reads == reads
        again = trained(trainable(classifier, "deebert"), lambda step: pytest.fail("trained twice"), tmp_path, Schooling(steps=1))
        assert again.reads == reads
        assert trained(trainable(classifier, "pabee"), batch, tmp_path / "own", Schooling(steps=1, reads="first")).reads == "first"
    finally:
        hook.remove()
    with pytest.raises(KnobError, match="Allowed: auto, first, mean"):
        Schooling(reads="last")


def test_what_cannot_be_trained_is_refused(classifier):
    with pytest.raises(KnobError, match="mue trains no exits"):
        trainable(classifier, "mue")
    with pytest.raises(KnobError, match="leaves at decoder"):
        trainable(classifier, "calm")


def test_a_regression_is_refused(classifier):
    config = BertConfig(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=1)
    with pytest.raises(InputError, match="one output and no classes"):
        Texts(BertForSequenceClassification(config), Letters(), [], [], "x")
    assert contest.UNITS == ("etr", "macs")
