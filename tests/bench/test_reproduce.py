"""`exitwise reproduce`: the paper's figures as printed, rows as ways of the right model at the right cost, and what is missing is said."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from exitwise import Engine
from exitwise.bench import beside, paper, reproduce, tasks
from exitwise.bench.ask import scores
from exitwise.bench.at_cost import AtCost, Chosen
from exitwise.bench.measure import Setup
from exitwise.bench.others import Rivals
from exitwise.bench.ways import engine_for
from exitwise.cli import app
from exitwise.cost import etr
from exitwise.errors import InputError, KnobError, UnknownName

# -- the paper's figures ------------------------------------------------------------------------------------------------------------


def test_the_papers_figures_have_the_shares_that_follow_from_its_tables():
    """By hand: 137.0 / 146.7, 41.6 / 42.8, 88.5 / 89.2; table 2's losses of 0.1 and 9.2 points, of 0.3 and 31.7 CIDEr."""
    captions, answers = paper.table("mue", "1", "caption"), paper.table("mue", "1", "answer")
    ours = next(line for line in captions.lines if line.key == "mue")
    assert captions.kept(ours, "cider") == pytest.approx(0.934, abs=5e-4) and captions.kept(ours, "bleu4") == pytest.approx(0.972, abs=5e-4)
    assert answers.kept(answers.lines[-1], "test") == pytest.approx(0.992, abs=5e-4)
    for kind, metric, few_all, all_few in (("answer", "test", 0.1, 9.2), ("caption", "cider", 31.7, 0.3)):
        rows = {line.key: line.figure(metric) for line in paper.table("mue", "2", kind).lines}
        assert rows["all"] - rows["few-all"] == pytest.approx(few_all) and rows["all"] - rows["all-few"] == pytest.approx(all_few)
    assert [line.figure("etr") for line in paper.table("mue", "3", "answer").lines] == [0, 0.19, 0.37, 0.45, 0.55]
    assert {line.key: line.figure("etr") for line in paper.table("mue", "4", "caption").lines}["plain"] == 0.25
    assert "deecap" not in [line.key for line in answers.lines]


def test_what_is_compared_is_the_papers_figure_for_that_split():
    assert paper.table("mue", "1", "answer").main("dev") == "dev" and paper.table("mue", "1", "answer").main("test") == "test"
    assert paper.table("mue", "4", "answer").main("dev") == "test"  # which has no dev figures for its ablation
    with pytest.raises(InputError, match="Tables: 1, 2, 3, 4"):
        paper.table("mue", "5", "answer")
    with pytest.raises(UnknownName):
        paper.read("calm")


# -- thresholds for a cost ----------------------------------------------------------------------------------------------------------


def entry(saved, quality):
    return {"settings": {"image": saved}, "quality": quality, "etr": saved}


@pytest.mark.parametrize(
    "wanted, saved",
    [(0.2, 0.21), (0.3, 0.5), (0.6, 0.5)],
    ids=["the best of the near ones", "else the best that saves it", "else what saves most"],
)
def test_the_best_at_a_cost(wanted, saved):
    entries = [entry(0.1, 0.9), entry(0.2, 0.6), entry(0.21, 0.7), entry(0.4, 0.65), entry(0.5, 0.8)]
    assert Chosen.best(entries, wanted, 5).etr == saved


@pytest.mark.parametrize(
    "kind, knobs",
    [
        ("answer", {}), ("answer", {"decompose": False}), ("answer", {"minimum": 2}), ("answer", {"schedule": "paper"}),
        ("answer", {"image_rel_bias": False}), ("caption", {"decompose": False}),
    ],
)  # fmt: skip
def test_what_is_chosen_does_that_on_the_items(place, asker, kind, knobs):
    """Quality and ETR of the choice are those of a live run, whatever the rule is."""
    items = asker.prepare(tasks.load(kind, place / kind, "calibration").items[:3])
    engine, joint = engine_for(asker, kind, **knobs), "decompose" in knobs
    found = AtCost(asker, kind, engine, items, tied=joint, trials=3).at(0.3)
    said = asker.ask(engine.with_settings(**found.settings), items)
    assert etr(said.trace) == pytest.approx(found.etr)
    marks = scores(kind, said.texts, [one.item for one in items])
    replayed = kind == "answer" and "schedule" not in knobs  # on a ledger, which counts shares of right answers
    assert sum(marks) / 3 == pytest.approx(found.quality * (100 if replayed else 1))
    if joint:
        assert torch.equal(said.trace.depth["image"], said.trace.depth["text"])


@pytest.mark.parametrize("kind", ["answer", "caption"])
@pytest.mark.parametrize("name", ["deebert", "pabee"])
def test_a_method_that_reads_answers_is_chosen_by_live_runs(place, asker, kind, name):
    """Its one threshold: quality and ETR are those of a live run, the encoder runs whole, and more savings are had by lower thresholds."""
    items = asker.prepare(tasks.load(kind, place / kind, "calibration").items[:3])
    chooser = AtCost(asker, kind, Engine(asker.model, name), items, trials=3)
    found = {wanted: chooser.at(wanted) for wanted in (0.0, 0.3)}
    for one in found.values():
        said = asker.ask(chooser.engine.with_settings(**one.settings), items)
        assert etr(said.trace) == pytest.approx(one.etr)
        assert sum(scores(kind, said.texts, [each.item for each in items])) / 3 == pytest.approx(one.quality)
        assert said.trace.depth["image"].eq(3).all() and set(one.settings) == {"decoder"}
    assert found[0.3].etr >= found[0.0].etr and found[0.3].settings["decoder"] <= found[0.0].settings["decoder"]


def test_exits_that_can_be_trained_are_and_the_model_is_left_as_it_was(place, asker, tmp_path):
    """Any method by its name: what it trains on a decoder is trained on the frozen model, kept, resumed, and taken as given."""
    lessons = tasks.load("caption", place / "caption", "calibration")
    before = {name: value.clone() for name, value in asker.model.state_dict().items()}
    wanted = [each.requires_grad for each in asker.model.parameters()]
    rivals = Rivals(lambda: lessons, tmp_path, steps=3)
    engine = rivals.engine(asker, "calm")
    assert rivals.about == {"calm": {"given": None, "trained": 3, "parameters": 33, "items": 6}}
    fresh = Engine(asker.model, "calm").fresh_exits(0).parts["ready"].weight
    assert not torch.equal(engine.exits.parts["ready"].weight, fresh)
    assert all(torch.equal(value, before[name]) for name, value in asker.model.state_dict().items())
    assert [each.requires_grad for each in asker.model.parameters()] == wanted and not asker.model.training
    again = Rivals(lambda: lessons, tmp_path, steps=3).engine(asker, "calm")  # it is done: nothing more is learnt
    assert torch.equal(again.exits.parts["ready"].weight, engine.exits.parts["ready"].weight)
    folder = next(tmp_path.glob("exits-calm-*")) / "saved"
    given = Rivals(lambda: pytest.fail("nothing is learnt"), tmp_path, given={"calm": folder})
    assert torch.equal(given.engine(asker, "calm").exits.parts["ready"].weight, engine.exits.parts["ready"].weight)
    assert given.about["calm"] == {"given": str(folder), "trained": 0, "parameters": 33}
    longer = Rivals(lambda: lessons, tmp_path, steps=5).engine(asker, "calm")  # another training, in a folder of its own
    assert not torch.equal(longer.exits.parts["ready"].weight, engine.exits.parts["ready"].weight)
    assert len(list(tmp_path.glob("exits-calm-*"))) == 2


def test_ramps_do_not_score_answers_of_several_tokens(place, asker, tmp_path):
    """Where they would, the model's own head reads the exits, and nothing is learnt; given ones are refused before anything is measured."""
    lessons = tasks.load("caption", place / "caption", "calibration")
    taught = Rivals(lambda: lessons, tmp_path, steps=2)
    assert taught.engine(asker, "deebert").exits.ramps is not None and taught.about["deebert"]["parameters"] == 2 * (32 * 32 + 32)
    scored = Rivals(lambda: pytest.fail("nothing is learnt"), tmp_path / "scored", scored=True)
    assert scored.engine(asker, "deebert").exits is None
    assert scored.about["deebert"] == {"given": None, "trained": 0, "parameters": 0, "scored": True}
    folder = next(tmp_path.glob("exits-deebert-*")) / "saved"
    with pytest.raises(KnobError, match="Leave it out"):
        Rivals(lambda: lessons, tmp_path, given={"deebert": folder}, scored=True).engine(asker, "deebert")


def test_thresholds_for_mean_depths(asker):
    """Four rows that stand still after layer 1, 2, 2 and never: any mean depth between 1 and 3 has its nearest threshold."""
    chooser = AtCost(asker, "caption", engine_for(asker, "caption"), [])
    still = torch.tensor([[0.9, 0.95, 1.0], [0.5, 0.8, 1.0], [0.4, 0.7, 1.0], [0.1, 0.2, 1.0]])
    chooser.__dict__["_recorded"] = {"image": still, "text": still}
    found = chooser.at_depths({"image": 2.0, "text": 3.0})
    assert found["text"] == 1.0
    assert 0.4 <= found["image"] < 0.7  # depths 1, 2, 2, 3 or 1, 1, 2, 3 would be 2.0 and 1.75: the first
    assert found["image"] >= 0.5


# -- tables -------------------------------------------------------------------------------------------------------------------------


def run_table(number, kind, askers, place, out, limit=3, **more):
    data = reproduce.data_of(kind, str(place / kind), "test", None, limit, False, None, more.get("preset", "corrected"))
    return reproduce.reproduce(number, askers, data, Setup(out=out, timed=2), trials=2, exit_steps=2, **more)


@pytest.mark.parametrize(
    "number, kind",
    [("1", "answer"), ("1", "caption"), ("2", "answer"), ("2", "caption"), ("3", "caption"), ("4", "answer"), ("4", "caption")],
)
def test_each_row_is_measured_or_said_to_be_missing(place, asker, tmp_path, number, kind):
    run = run_table(number, kind, {"checkpoint": asker}, place, tmp_path)
    lines = {line["key"]: line for line in run["lines"]}
    assert list(lines) == [line.key for line in paper.table("mue", number, kind).lines]
    absent = {key for key, line in lines.items() if line["measured"] is None}
    assert absent == {"1": {"tiny"}, "4": {"plain"}}.get(number, set())
    assert all(lines[key]["reason"] and key not in ("mue", "full") for key in absent)
    for key in ("deebert", "pabee", "deecap"):
        if key in lines:  # on the decoder alone, at some cost, and said to be so
            measured = lines[key]["measured"]
            assert measured["depth"]["image"] == measured["depth"]["text"] == 3 and measured["method"] == key
            assert measured["settings"].keys() == {"decoder"} and run["rivals"][key]["trained"] == 2
            assert any(each.startswith("PABEE (decoder): 2,112 parameters of exits, trained for 2") for each in run["differences"])
    first = run["lines"][0]
    assert first["kept"] == 1 and first["measured"]["etr"]["streams"] == 0
    for line in run["lines"]:
        if line["measured"]:
            assert line["kept"] == pytest.approx(line["measured"]["quality"]["value"] / first["measured"]["quality"]["value"])
    if number == "2":
        few, text = lines["few-all"]["measured"], lines["all-few"]["measured"]
        assert few["depth"]["image"] < 3 == few["depth"]["text"] == few["depth"]["decoder"]
        assert text["depth"]["text"] < 3 == text["depth"]["image"]
    if number == "4":
        assert lines["joint"]["measured"]["depth"]["image"] == lines["joint"]["measured"]["depth"]["text"]
    written = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert written["status"] == "done" and written["name"] == f"reproduce-mue-{number}-{kind}"
    drawn = beside.render(run)
    assert max(map(len, drawn.splitlines())) <= 80
    assert all(line["label"] in drawn for line in run["lines"])
    heads = [each.partition(":")[0] for each in run["differences"]]
    assert {"Data", "Model", "Thresholds", "Rule", "ETR"} <= set(heads) and ("Missing" in heads) == bool(absent)


def test_answers_of_several_tokens_are_judged_without_ramps_and_the_table_says_so(place, asker, tmp_path):
    """Two answers begin with the same word: `Engine.choose` scores them."""
    said = ["red green", "red blue", "black"]
    rows = [{"image": f"{c}.png", "question": "which?", "answer": said[i], "candidates": said} for i, c in enumerate(("red", "blue"))]
    folder = tmp_path / "data" / "answer"
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(place / "answer" / "images")
    for split in ("calibration", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = run_table("1", "answer", {"checkpoint": asker}, tmp_path / "data", tmp_path / "out")
    assert all(run["rivals"][key] == {"given": None, "trained": 0, "parameters": 0, "scored": True} for key in ("deebert", "pabee"))
    assert {line["key"] for line in run["lines"] if line["measured"]} == {"base", "deebert", "pabee", "mue"}
    assert any(each.startswith("DeeBERT (decoder), PABEE (decoder): the model's own norm and head") for each in run["differences"])


def test_other_models_fill_their_rows(place, asker, tmp_path):
    """The row of a model that was trained otherwise runs on that model, and says so."""
    run = run_table("4", "answer", {"without-layerwise": asker, "checkpoint": asker}, place, tmp_path, names={"checkpoint": "mine"})
    models = {line["key"]: line["measured"]["model"] for line in run["lines"]}
    assert models == {"full": "checkpoint", "mue": "checkpoint", "joint": "checkpoint", "plain": "without-layerwise"}
    assert not any(each.startswith("Missing") for each in run["differences"]) and run["config"]["models"] == {"checkpoint": "mine"}
    run = run_table("1", "answer", {"checkpoint": asker, "base": asker, "tiny": asker}, place, tmp_path)
    models = {line["key"]: line["measured"]["model"] for line in run["lines"] if line["measured"]}
    assert models == {"base": "base", "tiny": "tiny", "mue": "checkpoint", "deebert": "checkpoint", "pabee": "checkpoint"}


@pytest.mark.parametrize(
    "preset, kind, thresholds",
    [
        ("paper", "answer", {"image": 0.9, "text": 0.95, "decoder": 0.95}),
        ("released", "answer", {"image": 0.7, "text": 0.99, "decoder": 0.7}),
        ("released", "caption", {"image": 0.99, "text": 0.7, "decoder": 0.9}),
    ],
)
def test_presets_take_the_stated_thresholds(place, asker, tmp_path, preset, kind, thresholds):
    run = run_table("1", kind, {"checkpoint": asker}, place, tmp_path, preset=preset)
    rows = {line["key"]: line["measured"] for line in run["lines"]}
    assert rows["mue"]["settings"] == thresholds
    wasted = rows["mue"]["head_calls"] > rows["base"]["head_calls"]
    assert wasted == (preset == "released")
    assert any("state" in each for each in run["differences"] if each.startswith("Thresholds"))


def test_one_knob_beside_the_rest(place, asker, tmp_path):
    """Thresholds are chosen under the knob, which the run's name and its differences tell; thresholds themselves are the rows' own."""
    run = run_table("1", "answer", {"checkpoint": asker}, place, tmp_path, knobs={"head": "every layer"})
    assert run["name"] == "reproduce-mue-1-answer-head" and run["config"]["knobs"] == {"head": "every layer"}
    assert any(each.endswith("But for head=every layer.") for each in run["differences"])
    rows = {line["key"]: line["measured"] for line in run["lines"]}
    assert rows["mue"]["head_calls"] > rows["base"]["head_calls"] or rows["mue"]["depth"]["decoder"] == 1
    with pytest.raises(KnobError, match="image is one"):
        run_table("1", "answer", {"checkpoint": asker}, place, tmp_path, knobs={"image": 0.9})


def test_pooled_rows_are_asked_one_by_one(place, asker):
    """The released code's exits do not depend on who shares a batch here: its scripts ask one item at a time."""
    items = asker.prepare(tasks.load("answer", place / "answer", "test").items)
    engine = Engine(asker.model, "mue", preset="released-answer", image=0.6, text=0.6, decoder=0.6)
    together = asker.ask(engine, items)
    for place_, one in enumerate(items):
        alone = asker.ask(engine, [one])
        assert alone.texts[0] == together.texts[place_]
        assert alone.trace.depth["image"][0] == together.trace.depth["image"][place_]


# -- D6: the caption in the prompt ---------------------------------------------------------------------------------------------------

HYPOTHESIS = {"image": "a.png", "hypothesis": "A man-made <person> sleeps.", "label": "contradiction", "caption": "..A man runs"}


def entailment(root, **changes):
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(root / "images" / "a.png")
    row = {key: value for key, value in {**HYPOTHESIS, **changes}.items() if value is not None}
    for split in ("test", "val"):
        (root / f"{split}.jsonl").write_text("\n".join([json.dumps(row)] * 2))
    return root


def test_d6_puts_the_caption_into_the_prompt_when_asked(tmp_path):
    folder = entailment(tmp_path)
    plain, told = (tasks.load("answer", folder, "test", add_caption=flag).items[0] for flag in (False, True))
    assert plain.prompt == 'does the image describe " a man made person sleeps. "?'
    assert told.prompt == 'can image and text1 " a man runs " imply text2 " a man made person sleeps. "?'
    assert plain.references == told.references == ("no",) and set(plain.candidates) == {"yes", "maybe", "no"}
    assert plain.group == "entailment"


@pytest.mark.parametrize("preset, flag, caption, told", [
    ("released", None, "A man", True), ("released", False, "A man", False), ("corrected", None, "A man", False),
    ("corrected", True, "A man", True), ("released", None, None, False),
])  # fmt: skip
def test_d6_comes_with_the_released_preset_or_its_own_flag(tmp_path, preset, flag, caption, told):
    data = reproduce.data_of("answer", str(entailment(tmp_path, caption=caption)), "test", None, None, False, flag, preset)
    assert data.add_caption is told
    assert all(item.prompt.startswith("can image" if told else "does the image") for task in (data.task, data.held) for item in task.items)


def test_d6_without_captions_is_refused(tmp_path):
    folder = entailment(tmp_path, caption=None)
    with pytest.raises(InputError, match="test.jsonl:1: 'caption' is missing"):
        reproduce.data_of("answer", str(folder), "test", None, None, False, True, "corrected")
    with pytest.raises(InputError, match="embedded sample has no hypotheses"):
        reproduce.data_of("answer", None, None, None, None, False, True, "corrected")
    with pytest.raises(InputError, match="label 'perhaps' for a.png is not among contradiction, entailment, neutral"):
        tasks.load("answer", entailment(tmp_path, label="perhaps"), "test")


# -- the command --------------------------------------------------------------------------------------------------------------------


def call(*args):
    return CliRunner().invoke(app, ["reproduce", *map(str, args)])


def test_the_command_prints_the_table_and_writes_the_run(place, tmp_path):
    given = ("mue", "--table", "2", "--checkpoint", place / "model", "--data", place / "answer", "--split", "test", "--out", tmp_path)
    done = call(*given)
    assert done.exit_code == 0, done.output
    assert "few, all" in done.stdout and "88.6" in done.stdout and "2.03/6" in done.stdout and "The run: " in done.stdout
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["table"]["number"] == "2"


def test_bad_requests_end_with_two_and_one_message(place, tmp_path):
    folder = entailment(tmp_path)
    (folder / "val.jsonl").rename(folder / "other.jsonl")
    start = ("mue", "--table", "1", "--checkpoint", place / "model", "--out", tmp_path / "out")
    for more, said in (
        (("--preset", "relaesed"), "Did you mean 'released'"),
        (("--data", folder, "--split", "test"), "name another split"),
        (("--limit", "1"), "Give --limit 2 or more"),
        (("--tiny", tmp_path / "nothing"), "does not exist"),
        (("--exits", "deebert"), "is not METHOD=FOLDER"),
        (("--exits", "deebret=x"), "Did you mean 'deebert'"),
    ):
        done = call(*start, *more)
        assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output, done.output
    assert call("mue", "--table", "5", "--checkpoint", "shipped").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_the_shipped_model_is_a_substitute(tmp_path):
    done = call("mue", "--table", "2", "--checkpoint", "shipped", "--limit", "2", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    run = json.loads(done.stdout)
    assert run["shapes"]["checkpoint"]["size"] == "custom" and run["task"]["items"] == 2
    assert any("the paper's is OFA-Base, 180 M" in each for each in run["differences"])
