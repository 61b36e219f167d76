"""`exitwise train --method` and `exitwise bench --methods` on a classifier's folder: from two commands to a recommendation and a report."""

import json

import pytest
import torch
from tests.test_cli import call, parsed
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

WORDS = ["fine", "great", "good", "poor", "bad", "dull", "film", "a", "the"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny classifier with its tokenizer, and reviews in three splits, labelled by the model itself but for each sixth."""
    root = tmp_path_factory.mktemp("compare")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab_file=str(root / "vocab.txt"))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
        id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.bert.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "reviews").mkdir()
    for seed, split in enumerate(("train", "calibration", "test")):
        dice, lines = torch.Generator().manual_seed(seed), []
        for place in range(40):
            text = " ".join(WORDS[int(i)] for i in torch.randint(0, 9, (3 + place % 4,), generator=dice))
            with torch.no_grad():
                said = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
            lines.append(json.dumps({"text": text, "label": config.id2label[said ^ (place % 6 == 0)]}))
        (root / "reviews" / f"{split}.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def exits(home):
    made = parsed("train", home / "model", "--method", "deebert,palbert", "--data", home / "reviews", "--steps", 2, "--out", home / "exits")
    assert set(made["exits"]) == {"deebert", "palbert"}
    return home / "exits"


def test_two_commands_give_a_recommendation_and_a_third_the_report(home, exits):
    asked = ["bench", home / "model", "--methods", "all", "--data", home / "reviews", "--exits", exits, "--points", 2, "--timed", 2]
    result = call(*asked, "--keep", 0.8, "--out", home / "runs")
    assert "Take " in result.stdout and "not compared: pabee: it needs exits" in result.stderr
    run = parsed(*asked, "--keep", 0.8, "--out", home / "runs")
    assert {line["method"] for line in run["contest"]} == {"mue", "deebert", "palbert", "static", "random", "oracle"}
    assert run["task"]["items"] == 40 and len(list((home / "runs").glob("*method-classify-mue.json"))) == 1  # taken over
    drawn = parsed("report", home / "runs", "--out", home / "page.html")
    assert drawn["runs"] == ["compare-classify"] and "Which method" in (home / "page.html").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bench", "{model}", "--methods", "pabe", "--data", "{reviews}"], "pabee"),
        (["bench", "{model}", "--methods", "all", "--task", "answer", "--data", "{reviews}"], "Leave --task out"),
        (["bench", "{model}", "--methods", "all", "--data", "{reviews}", "--split", "gone"], "no split gone"),
        (["bench", "{model}", "--methods", "all", "--data", "{reviews}", "--exits", "{reviews}"], "holds no exitwise.json"),
        (["bench", "{model}", "--methods", "all", "--data", "{reviews}", "--preset", "paper"], "--preset is for one method"),
        (["bench", "{model}", "--methods", "all", "--data", "{reviews}", "--keep", "2"], "not a share"),
        (["bench", "{model}", "--data", "{reviews}"], "The task is not said"),
        (["bench", "--task", "answer", "--data", "{reviews}", "--exits", "a", "--exits", "b"], "given 2 times"),
        (["train", "{model}", "--method", "deebert", "--data", "{reviews}", "--out", "{out}", "--lora", "4"], "--lora is for training"),
        (["train", "{model}", "--method", "mue", "--data", "{reviews}", "--out", "{out}"], "trains no exits"),
        (["train", "{model}", "--method", "deebert", "--recipe", "x", "--data", "{reviews}", "--out", "{out}"], "--recipe is for training"),
    ],
)
def test_what_cannot_be_used_is_said(home, tmp_path, args, said):
    names = {"model": home / "model", "reviews": home / "reviews", "out": tmp_path}
    assert said in call(*[arg.format(**names) for arg in args], code=2).stderr.replace("\n", " ")
