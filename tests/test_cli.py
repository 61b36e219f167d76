"""The command line on tiny models: what each command prints, where it prints it, and how it fails."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from exitwise import families, methods, models
from exitwise.cli import app
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer

COMMANDS = ["demo", "run", "inspect", "train", "calibrate", "bench", "reproduce", "report", "methods", "families", "convert", "cut"]
TEXTS = ["what does the image describe?", "a red picture", "a blue picture", "it is red true or false?", "true", "false"]


def call(*args, code=0):
    """The result of a command; a failure that is no plain exit is raised as it is."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def parsed(*args, code=0):
    """The one JSON object on stdout."""
    out = call(*args, "--json", code=code).stdout
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.fixture(scope="module")
def unified(tmp_path_factory):
    """The folder of a tiny unified model that gives unlike depths at unlike thresholds."""
    folder, tokenizer = tmp_path_factory.mktemp("unified"), train_tokenizer(TEXTS * 5, 300)
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0", decomposed=True, dropout=0.0,
    )  # fmt: skip
    OFAForConditionalGeneration(config).save_pretrained(folder)
    OFAProcessor.for_config(tokenizer, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder for each task: pictures of one colour; a bad row in a split of its own."""
    root = tmp_path_factory.mktemp("data")
    for kind in ("caption", "answer"):
        (root / kind / "images").mkdir(parents=True)
        for colour in ("red", "blue"):
            Image.new("RGB", (32, 32), colour).save(root / kind / "images" / f"{colour}.png")
    captions = [{"image": f"{c}.png", "captions": [f"a {c} picture"]} for c in ("red", "blue")]
    answers = [{"image": f"{c}.png", "sentence": "It is red.", "label": str(c == "red").lower()} for c in ("red", "blue")]
    gone = {"image": "gone.png", "captions": ["nothing"]}
    for name, extra in (("train", []), ("holey", [gone, *captions]), ("double", captions)):
        (root / "caption" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, captions + extra)))
    (root / "answer" / "train.jsonl").write_text("\n".join(map(json.dumps, answers)))
    return root


@pytest.fixture(scope="module")
def taught(unified, data, tmp_path_factory):
    """OUT of a short training on captions, and what the command said."""
    out = tmp_path_factory.mktemp("taught")
    said = parsed(
        "train", unified, "--task", "caption", "--data", data / "caption", "--split", "train", "--out", out, "--steps", 60, "--lr", 4e-3,
        "--rows", 4, "--warmup", 5,
    )  # fmt: skip
    return out, said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_teaches_with_an_example(command):
    said = call(command, "--help").stdout
    assert "Example" in said and f"exitwise {command}" in said


def test_help_is_quick_because_torch_stays_out():
    code = (
        "import sys\nfrom exitwise.cli import app\ntry:\n app(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(m.split('.')[0] in {'torch', 'transformers', 'numpy', 'matplotlib', 'PIL'} for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_registers_are_listed():
    assert [m["name"] for m in parsed("methods")["methods"]] == methods.names()
    assert [f["name"] for f in parsed("families")["families"]] == families.names()
    knobs = {k["name"]: k for k in parsed("methods", "mue")["methods"][0]["knobs"]}
    assert knobs["image"]["default"] == 1.0 and knobs["image"]["high"] == 2.0
    assert "image" in call("methods", "mue").stdout and "bert" in call("families").stdout


def test_inspect_finds_the_streams_and_tests_itself(unified):
    found = parsed("inspect", unified, "--check")
    assert [s["streams"] for s in found["stacks"]] == [["image", "text"], ["decoder"]]
    assert found["family"] == "ofa" and len(found["saturation"]["image"]) == 3
    assert found["checks"] and all(c["passed"] for c in found["checks"])
    assert "model.decoder.layers" in call("inspect", unified).stdout


def test_inspect_ends_with_one_where_the_self_test_fails(unified, monkeypatch):
    from exitwise.inspect import selftest

    monkeypatch.setitem(selftest.CHECKS, "identity at full depth", lambda bench: (False, "made to fail"))
    result = call("inspect", unified, "--check", code=1)
    assert "made to fail" in result.stdout and "identity at full depth" in result.stderr and "adding-a-family" in result.stderr


def test_run_says_the_answer_and_where_everything_left(unified, data):
    image = data / "caption" / "images" / "red.png"
    full = parsed("run", unified, "--image", image)
    early = parsed("run", unified, "--image", image, "--set", "image=-1", "--set", "decoder=-1")
    assert full["trace"]["depth"]["image"] == [3] and full["etr"]["mean"] == pytest.approx(0)
    assert early["trace"]["depth"]["image"] == [1] and early["trace"]["depth"]["text"] == [3]
    assert early["tokens"] and {t["depth"] for t in early["tokens"]} == {1}
    assert early["etr"]["mean"] == pytest.approx(1 - (2 + 1) / 6)
    assert early["trace"]["calls"]["model.encoder.layers"] < full["trace"]["calls"]["model.encoder.layers"]
    shown = call("run", unified, "--image", image, "--method", "static", "--set", "decoder=2")
    assert "ETR 17 %" in shown.stdout and "layer calls" in shown.stdout and not shown.stderr
    assert "nothing left early" in call("run", unified, "--image", image).stderr


def test_run_chooses_among_candidates(unified, data):
    image = data / "answer" / "images" / "red.png"
    said = parsed("run", unified, "--image", image, "--prompt", "it is red true or false?", "--candidates", "true, false")
    assert said["task"] == "answer" and said["answer"] in ("true", "false") and said["settings"]["decoder_scope"] == "last"


def test_a_preset_is_that_of_the_kind_of_task_and_gives_way_to_set(unified, data, tmp_path):
    image, exits = data / "answer" / "images" / "red.png", tmp_path / "exits"
    asked = ("run", unified, "--image", image, "--preset")
    wrote = parsed(*asked, "released", "--set", "batch=compact")["settings"]
    assert (wrote["keys_values"], wrote["schedule"], wrote["batch"], wrote["image"]) == ("holes", "released", "compact", 1.0)
    chose = parsed(*asked, "paper", "--prompt", "it is red true or false?", "--candidates", "true,false")["settings"]
    assert (chose["decoder"], chose["schedule"], chose["decoder_scope"]) == (0.95, "static", "last")
    assert "Did you mean 'paper'" in call(*asked, "papre", code=2).stderr
    folder = copies(data / "answer", 2, tmp_path / "two")
    parsed("calibrate", unified, "--task", "answer", "--data", folder, "--preset", "released", "--out", exits, "--keep", 0.1)
    saved = json.loads((exits / "exitwise.json").read_text())["settings"]
    assert (saved["schedule"], saved["batch"], saved["head"]) == ("static", "flat", "every layer")
    again = ("--exits", exits, "--preset", "released")
    assert "says them twice" in call("run", unified, "--image", image, *again, code=2).stderr
    assert "says them twice" in call("bench", "--task", "answer", "--data", data / "answer", *again, code=2).stderr


def test_run_with_models_of_others(tmp_path):
    tokenizer = train_tokenizer(TEXTS * 5, 300)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    bart = BartConfig(
        **sizes, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    BartForConditionalGeneration(bart).save_pretrained(tmp_path / "bart")
    labels = {0: "bad", 1: "good"}
    bert = BertConfig(**sizes, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, id2label=labels)
    BertForSequenceClassification(bert).save_pretrained(tmp_path / "bert")
    for name in ("bart", "bert"):
        tokenizer.save_pretrained(tmp_path / name)
    wrote = parsed("run", tmp_path / "bart", "--prompt", "a red picture", "--longest", 5, "--method", "static", "--set", "decoder=1")
    assert set(sum(wrote["trace"]["depth"]["decoder"], [])) <= {0, 1} and wrote["trace"]["layers"]["decoder"] == 2
    chose = parsed("run", tmp_path / "bart", "--prompt", "it is red", "--candidates", "true,false")
    assert chose["answer"] in ("true", "false")
    assert parsed("run", tmp_path / "bert", "--prompt", "a red picture")["answer"] in ("bad", "good")
    message = call("run", tmp_path / "bert", code=2).stderr
    assert "--prompt" in message
    refused = call("train", tmp_path / "bart", "--task", "caption", "--data", "x", "--out", "y", "--steps", 1, code=2)
    assert "x" in refused.stderr


def test_train_learns_exports_and_resumes(taught, unified, data):
    out, said = taught
    assert said["steps"] == 60 and said["exported"] == "last" and said["items"] == 2
    spoken = {c: parsed("run", out / "export", "--image", data / "caption" / "images" / f"{c}.png")["answer"] for c in ("red", "blue")}
    assert all("picture" in text for text in spoken.values())
    again = parsed(
        "train", unified, "--task", "caption", "--data", data / "caption", "--split", "train", "--out", out, "--steps", 62, "--rows", 4,
        "--lr", 4e-3,
    )  # fmt: skip
    assert again["steps"] == 62
    weights = (out / "export" / "model.safetensors").read_bytes()
    refused = call("train", unified, "--task", "caption", "--data", data / "caption", "--split", "train", "--out", out, "--steps", 63,
                   "--rows", 2, "--lr", 1e-3, code=2)  # fmt: skip
    assert "lr was 0.004 and is 0.001" in refused.stderr and "learnt.rows was 4 and is 2" in refused.stderr
    assert (out / "export" / "model.safetensors").read_bytes() == weights


def test_the_best_weights_of_a_validation_are_exported(unified, data, tmp_path):
    said = parsed(
        "train", unified, "--task", "answer", "--data", data / "answer", "--out", tmp_path, "--steps", 2, "--validation", "train",
        "--validate-every", 0, "--weights", "linear",
    )  # fmt: skip
    assert said["exported"] == "best" and len(said["history"]) == 2 and said["best"] > 0


def test_calibrated_captions_are_saved_and_run(taught, data, tmp_path):
    out, _ = taught
    found = parsed(
        "calibrate", out / "export", "--task", "caption", "--data", data / "caption", "--split", "double", "--out", tmp_path, "--keep", 0.9
    )
    assert found["quality"] >= 0.9 * found["quality_full"] > 0 and found["rows"] == 4
    said = parsed("run", out / "export", "--image", data / "caption" / "images" / "red.png", "--exits", tmp_path)
    assert {k: said["settings"][k] for k in found["settings"]} == found["settings"]
    changed = parsed("run", out / "export", "--image", data / "caption" / "images" / "red.png", "--exits", tmp_path, "--set", "image=1")
    assert changed["settings"]["image"] == 1 and changed["trace"]["depth"]["image"] == [3]


def copies(folder, times, into):
    """The folder with its rows so many times."""
    shutil.copytree(folder, into)
    file = next(into.glob("*.jsonl"))
    file.write_text("\n".join([file.read_text().strip()] * times))
    return into


def test_calibrated_answers_come_from_a_ledger(unified, data, tmp_path):
    shown = call("calibrate", unified, "--task", "answer", "--data", copies(data / "answer", 2, tmp_path / "two"), "--out", tmp_path)
    assert "accuracy" in shown.stdout and (tmp_path / "exitwise.json").is_file()
    assert "every item at every exit" in shown.stderr


def test_a_promise_on_too_few_items_is_refused_and_the_exits_stay_shut(unified, data, tmp_path):
    """A hundred copies of the rows are still too few at 99.9 %; at 90 % they do, and the promise is saved with the exits."""
    many = copies(data / "answer", 100, tmp_path / "many")
    asked = ("calibrate", unified, "--task", "answer", "--data", many, "--confidence", 0.95, "--out", tmp_path, "--keep")
    shown = call(*asked, 0.999, code=1)
    assert "Nothing but full depth can be promised" in shown.stderr and "Rows that would do" in " ".join(shown.stderr.split())
    saved = json.loads((tmp_path / "exitwise.json").read_text())
    assert {saved["settings"][s] for s in ("image", "text", "decoder")} == {1.0}
    shown = call(*asked, 0.9)
    assert "Promised with confidence 0.95" in shown.stderr
    assert json.loads((tmp_path / "exitwise.json").read_text())["calibration"]["promise"]["risk"] == pytest.approx(0.1)


def test_a_budget_is_kept_in_every_unit_and_the_front_is_drawn_and_saved(unified, taught, data, tmp_path):
    """The cost told for answers is what the trace of a run of the saved exits shows (ETR); full depth is on the front of captions."""
    many = copies(data / "answer", 4, tmp_path / "many")
    for cost, budget in (("etr", 0.7), ("macs", 0.99), ("ms", 0.99)):  # the stem of a tiny model is most of it
        asked = ["calibrate", unified, "--task", "answer", "--data", many, "--budget", budget, "--cost", cost, "--out", tmp_path / cost]
        found = parsed(*asked, "--front")
        assert found["cost"]["share"] <= budget == found["budget"] and found["cost"]["unit"] == cost and found["etr"] > 0
        assert any(point["cost"] == found["cost"]["share"] for point in found["front"]) and found["promise"] is None
        assert bool(found["cost"]["prices"]["machine"]) == (cost == "ms")
        saved = json.loads((tmp_path / cost / "exitwise.json").read_text())
        assert saved["calibration"]["cost"]["prices"]["layers"].keys() == {"image", "text", "decoder"} and saved["calibration"]["front"]
    judged = parsed(
        "bench", "--model", unified, "--task", "answer", "--data", many, "--exits", tmp_path / "etr", "--out", tmp_path / "runs"
    )
    etr = json.loads((tmp_path / "etr" / "exitwise.json").read_text())["calibration"]["etr"]
    assert judged["rows"][1]["etr"]["streams"] == pytest.approx(etr) and etr >= 0.3 - 1e-9
    shown = call(*asked, "--front").stdout
    assert "mean cost (ms)" in shown and "front of answer" in shown
    mine = ["calibrate", taught[0] / "export", "--task", "caption", "--data", data / "caption", "--split", "double", "--out", tmp_path]
    spoken = parsed(*mine, "--budget", 0.8, "--trials", 6)
    assert spoken["etr"] >= 0.2 - 1e-9 and spoken["tried"] <= 6 and spoken["front"] is None


def test_captions_get_a_promise_or_a_number_of_items(taught, data, tmp_path):
    """The taught model says the same at every depth, so that few items do; two kinds of items are enough to tell."""
    many, mine = tmp_path / "many", taught[0] / "export"
    shutil.copytree(data / "caption", many)
    rows = (many / "train.jsonl").read_text().strip()
    for name, times in (("few", 7), ("many", 60)):
        (many / f"{name}.jsonl").write_text("\n".join([rows] * times))
    asked = ["calibrate", mine, "--task", "caption", "--data", many, "--out", tmp_path / "exits", "--keep", 0.8, "--confidence", 0.9]
    few = call(*asked, "--split", "few", "--trials", 6, code=1)
    assert "Rows that would do" in few.stderr
    assert set(json.loads((tmp_path / "exits" / "exitwise.json").read_text())["calibration"]["settings"].values()) == {1.0}
    done = call(*asked, "--split", "many", "--trials", 8)
    assert "Promised with confidence 0.9" in done.stderr and "drop of an item's quality" in done.stderr
    saved = json.loads((tmp_path / "exits" / "exitwise.json").read_text())["calibration"]
    assert saved["etr"] > 0 and saved["promise"]["rows"] == 80 and saved["promise"]["ordering_rows"] == 40


BAD = {
    "an unknown method": (["methods", "mu"], "'mue'"),
    "a folder that is not there": (["inspect", "no/such/model/here"], "no/such/model/here"),
    "a slip of the pen": (["inspect", "shiped"], "'shipped'"),
    "a folder without a model": (["inspect", "{data}"], "config.json"),
    "an image that is not there": (["run", "{unified}", "--image", "gone.png"], "gone.png"),
    "no image": (["run", "{unified}"], "--image"),
    "an empty prompt": (["run", "{unified}", "--image", "{red}", "--prompt", " "], "empty"),
    "a question without candidates": (["run", "{unified}", "--image", "{red}", "--task", "answer", "--prompt", "what"], "--candidates"),
    "one candidate": (["run", "{unified}", "--image", "{red}", "--prompt", "what", "--candidates", "a"], "--candidates"),
    "a knob without a value": (["run", "{unified}", "--image", "{red}", "--set", "image"], "KNOB=VALUE"),
    "a knob that there is not": (["run", "{unified}", "--image", "{red}", "--set", "imag=0.9"], "'image'"),
    "a threshold outside its range": (["run", "{unified}", "--image", "{red}", "--set", "image=7"], "image=7"),
    "a word for a threshold": (["run", "{unified}", "--image", "{red}", "--set", "image=high"], "high"),
    "exits that are not there": (["run", "{unified}", "--image", "{red}", "--exits", "gone"], "gone"),
    "a method beside exits that are not there": (["run", "{unified}", "--image", "{red}", "--exits", "gone", "--method", "mue"], "gone"),
    "a missing image in the data": (
        ["calibrate", "{unified}", "--task", "caption", "--data", "{data}/caption", "--split", "holey", "--out", "{out}"],
        "gone.png",
    ),
    "an impossible share": (
        ["calibrate", "{unified}", "--task", "caption", "--data", "{data}/caption", "--out", "{out}", "--keep", "2"],
        "2",
    ),
    "a budget of more than all": (
        ["calibrate", "{unified}", "--task", "caption", "--data", "{data}/caption", "--out", "{out}", "--budget", "2"],
        "budget=2",
    ),
    "a budget with a promise": (
        [
            "calibrate",
            "{unified}",
            "--task",
            "caption",
            "--data",
            "{data}/caption",
            "--out",
            "{out}",
            "--budget",
            ".5",
            "--confidence",
            ".9",
        ],
        "promises no quality",
    ),
    "a calibration file of one class": (
        ["calibrate", "{unified}", "--task", "answer", "--data", "{data}/answer", "--limit", "1", "--out", "{out}"],
        "one class",
    ),
    "fewer rows than exits": (
        ["calibrate", "{unified}", "--task", "answer", "--data", "{data}/answer", "--out", "{out}"],
        "2 calibration rows for 3 exits",
    ),
    "a choice of splits": (["calibrate", "{unified}", "--task", "caption", "--data", "{data}/caption", "--out", "{out}"], "--split"),
    "a training without an end": (["train", "{unified}", "--task", "answer", "--data", "{data}/answer", "--out", "{out}"], "steps"),
    "patience without validation": (
        ["train", "{unified}", "--task", "answer", "--data", "{data}/answer", "--out", "{out}", "--steps", "1", "--patience", "1"],
        "--validation",
    ),
    "an unknown task": (["bench", "--task", "poem", "--data", "{data}"], "poem"),
    "no runs to report": (["report", "{data}"], "no finished run"),
    "no folder to report": (["report", "gone"], "gone"),
    "a bench on a folder that is not there": (["bench", "--model", "{unified}", "--task", "caption", "--data", "gone"], "gone"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_on_stderr(case, unified, data, tmp_path):
    args, named = BAD[case]
    places = {"unified": unified, "data": data, "out": tmp_path / "out", "red": data / "caption" / "images" / "red.png"}
    result = call(*(arg.format(**places) for arg in args), code=2)
    assert named in result.stderr and "Traceback" not in result.stderr
    assert not result.stdout


def test_a_name_that_the_hub_does_not_give_is_explained(monkeypatch):
    from transformers import AutoConfig

    def nobody(source, **_):
        raise OSError(f"cannot find {source}\nsecond line")

    monkeypatch.setattr(AutoConfig, "from_pretrained", nobody)
    said = call("inspect", "nobody/nothing", code=2).stderr
    assert "asking the hub" in said and "nobody/nothing" in said and "second line" not in said


def test_a_bad_row_may_be_left_out_and_is_named(unified, data, tmp_path):
    result = call(
        "calibrate", unified, "--task", "caption", "--data", data / "caption", "--split", "holey", "--out", tmp_path, "--skip-bad", code=2
    )  # an untaught model keeps a share of nothing
    assert "nothing to keep" in result.stderr


def test_a_checkpoint_of_another_shape_is_refused(unified, tmp_path):
    model = OFAForConditionalGeneration.from_pretrained(unified)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_ffn_dim": 48}))
    assert str(tmp_path) in call("inspect", tmp_path, code=2).stderr
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_layers": 4}))
    assert "missing" in call("inspect", tmp_path, code=2).stderr


@pytest.mark.parametrize("args", [["demo"], ["inspect"], ["bench", "--task", "caption", "--data", "x"]])
def test_without_the_shipped_model_it_is_said(args, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "shipped_path", lambda: tmp_path)
    assert "shipped model" in call(*args, code=2).stderr


def test_bench_judges_saved_exits_names_what_it_left_out_and_report_draws_it(taught, data, tmp_path):
    mine, folder = taught[0] / "export", data / "caption"
    parsed("calibrate", mine, "--task", "caption", "--data", folder, "--split", "double", "--out", tmp_path / "exits", "--keep", 0.5)
    args = ["bench", "--model", mine, "--task", "caption", "--data", folder, "--exits", tmp_path / "exits", "--out", tmp_path / "runs"]
    record = parsed(*args, "--split", "holey", "--skip-bad", "--strict", code=1)
    assert [row["key"] for row in record["rows"]] == ["full", "saved"]
    assert record["task"]["items"] == 4 and "gone.png" in record["task"]["skipped"][0]
    shown = call(*args, "--split", "train")
    assert "CIDEr" in shown.stdout and max(map(len, shown.stdout.splitlines()[:-1])) <= 80
    drawn = parsed("report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert drawn["runs"] == ["bench-caption"] and "<html" in (tmp_path / "page.html").read_text()
