"""`exitwise train` by recipe on the forms that OFA's users own, and what it refuses."""

import base64
import io
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from exitwise.cli import app
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer
from exitwise.train import recipe

COLOURS = ("red", "blue", "green", "white")
TEXTS = [
    "what does the image describe?", 'can image and text1 " a red picture " imply text2 " it is blue "?', "yes", "no", "maybe",
    *(f"a {colour} picture of nothing" for colour in COLOURS),
]  # fmt: skip


def call(*args, code=0):
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def parsed(*args):
    return json.loads(call(*args, "--json").stdout)


@pytest.fixture(scope="module")
def unified(tmp_path_factory):
    """A tiny fused model with dropout."""
    folder, tokenizer = tmp_path_factory.mktemp("unified"), train_tokenizer(TEXTS * 5, 330)
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0", dropout=0.3,
    )  # fmt: skip
    OFAForConditionalGeneration(config).save_pretrained(folder)
    OFAProcessor.for_config(tokenizer, config).save_pretrained(folder)
    return folder


def picture(colour):
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """ve/: SNLI-VE as OFA's TSV; coco/: captions as Karpathy's json."""
    root = tmp_path_factory.mktemp("data")
    (root / "ve").mkdir()
    (root / "coco" / "images").mkdir(parents=True)
    labels = ("entailment", "contradiction", "neutral", "contradiction")
    lines = []
    for number, (colour, label) in enumerate(zip(COLOURS, labels)):
        image = base64.b64encode(picture(colour)).decode()
        lines.append("\t".join((str(number), str(number), image, "It is red.", f"A {colour} picture.", label)))
        (root / "coco" / "images" / f"{colour}.jpg").write_bytes(picture(colour))
    for split in ("train", "dev"):
        (root / "ve" / f"snli_ve_{split}.tsv").write_text("\n".join(lines) + "\n")
    entries = [
        {"filename": f"{colour}.jpg", "split": split, "sentences": [{"raw": f"A {colour} picture, of nothing."}]}
        for colour, split in zip(COLOURS, ("train", "restval", "train", "val"))
    ]
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return root


def test_recipes_are_listed_with_what_they_are():
    said = call("train", "--recipes").stdout
    assert all(name in said and recipe.load(name).about in said for name in recipe.names())


def test_entailment_by_recipe_is_trained_decomposed_and_judged_with_its_prompt(unified, data, tmp_path):
    out = tmp_path / "mine"
    said = parsed("train", unified, "--recipe", "mue-snli-ve", "--data", data / "ve", "--out", out, "--set", "batch=4", "--rows", 2,
                  "--validation", "dev", "--validate-every", 0)  # fmt: skip
    assert said["task"] == "answer" and said["steps"] == 5 and said["items"] == 4  # five epochs of one update
    assert said["recipe"]["lr"] == 3e-5 and said["recipe"]["add_caption"] and len(said["history"]) == 5
    settings = json.loads((out / "settings.json").read_text())
    assert settings["accumulate"] == 2 and settings["schedule"] == "linear" and settings["learnt"]["reduction"] == "sum"
    config = json.loads((out / "export" / "config.json").read_text())
    assert config["decomposed"] and config["dropout"] == 0.1 and config["drop_path"] == 0.1 and config["train_stem"]
    again = call(
        "train", unified, "--recipe", "released-snli-ve", "--data", data / "ve", "--out", out, "--set", "batch=4", "--rows", 2, code=2
    )
    assert "lr was 3e-05 and is 5e-05" in again.stderr
    judged = parsed("bench", "--model", out / "export", "--task", "answer", "--data", data / "ve", "--split", "dev", "--add-caption",
                    "--calibration", "train", "--keep", 0.1, "--out", tmp_path / "runs")  # fmt: skip
    assert judged["task"]["items"] == 4 and judged["task"]["split"] == "snli_ve_dev"
    found = call("calibrate", out / "export", "--task", "answer", "--data", data / "ve", "--split", "dev", "--add-caption", "--keep", 0.1,
                 "--out", tmp_path / "exits")  # fmt: skip
    assert "accuracy" in found.stdout


@pytest.mark.parametrize("command", ["train", "calibrate", "bench"])
def test_each_command_adds_the_caption_where_it_is_asked(command, unified, data, tmp_path):
    """A row without one shows who looks for it."""
    bare = tmp_path / "bare"
    bare.mkdir()
    fields = (data / "ve" / "snli_ve_dev.tsv").read_text().splitlines()[0].split("\t")
    (bare / "a.tsv").write_text("\t".join((*fields[:4], "", fields[5])) + "\n")
    args = {
        "train": ["train", unified, "--steps", 1, "--out", tmp_path / "out"],
        "calibrate": ["calibrate", unified, "--out", tmp_path / "out"],
        "bench": ["bench", "--model", unified, "--out", tmp_path / "out", "--exits", tmp_path / "none"],
    }
    result = call(*args[command], "--task", "answer", "--data", bare, "--add-caption", code=2)
    assert "a.tsv:1: the caption for 0 is empty" in result.stderr


def test_captions_go_through_both_stages(unified, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    said = parsed("train", unified, "--recipe", "mue-coco-caption", "--data", data / "coco", "--out", one, "--steps", 2, "--set", "batch=2")
    assert said["items"] == 3 and said["steps"] == 2
    said = parsed("train", one / "export", "--recipe", "mue-coco-caption-stage2", "--data", data / "coco", "--out", two, "--epochs", 1,
                  "--set", "batch=2", "--set", "search=sample", "--validation", "val", "--validate-every", 0)  # fmt: skip
    assert said["steps"] == 2 and said["recipe"]["search"] == "sample" and "cider" in said["history"][0]
    assert json.loads((two / "export" / "config.json").read_text())["dropout"] == 0.0
    own = tmp_path / "own.toml"
    own.write_text((recipe.FOLDER / "mue-coco-caption.toml").read_text().replace("3e-5 ", "7e-5 "))
    said = parsed("train", unified, "--recipe", own, "--data", data / "coco", "--out", tmp_path / "own", "--steps", 1, "--set", "batch=2",
                  "--set", "betas=[0.5,0.6]")  # fmt: skip
    assert said["recipe"]["lr"] == 7e-5 and said["recipe"]["betas"] == [0.5, 0.6]


REFUSED = {
    "an unknown recipe": (["--recipe", "mue-snli", "--data", "{data}/ve"], "'mue-snli-ve'"),
    "a recipe of another task": (["--recipe", "mue-snli-ve", "--task", "caption", "--data", "{data}/ve"], "is for the task answer"),
    "a value that there is not": (["--recipe", "mue-snli-ve", "--data", "{data}/ve", "--set", "drop_pat=0"], "'drop_path'"),
    "a value outside": (["--recipe", "mue-snli-ve", "--data", "{data}/ve", "--set", "drop_path=1"], "drop_path is 1"),
    "a value said twice": (["--recipe", "mue-snli-ve", "--data", "{data}/ve", "--set", "lr=1e-4", "--lr", "1e-4"], "lr was given twice"),
    "rows that do not make the batch": (["--recipe", "mue-snli-ve", "--data", "{data}/ve", "--rows", "5"], "batch of 64 items cannot"),
    "no task": (["--data", "{data}/ve", "--steps", "1"], "The task is not said"),
    "captions asked of entailment": (["--recipe", "mue-coco-caption", "--data", "{data}/ve"], "6 columns. A caption's row has 5"),
    "answers asked of captions": (["--recipe", "mue-snli-ve", "--data", "{data}/coco"], "Give --task caption"),
    "a reward for answers": (
        ["--task", "answer", "--data", "{data}/ve", "--steps", "1", "--set", "reward=true"],
        "A reward is for captions",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named_and_nothing_is_written(case, unified, data, tmp_path):
    args, said = REFUSED[case]
    result = call("train", unified, *(arg.format(data=data) for arg in args), "--out", tmp_path / "out", code=2)
    assert said in result.stderr and not result.stdout and not (tmp_path / "out").exists()
