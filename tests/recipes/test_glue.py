"""The recipe for GLUE: what it reads, its batches, its fronts by hand, and the whole way with a tiny model on made-up rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "glue"))
glue = pytest.importorskip("glue")
glue_data = pytest.importorskip("glue_data")
glue_judge = pytest.importorskip("glue_judge")
glue_learn = pytest.importorskip("glue_learn")

from exitwise.bench.metrics import accuracy, f1, matthews  # noqa: E402
from exitwise.errors import InputError  # noqa: E402

REAL = Path(__file__).parents[2] / ".data" / "glue"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", *(f"w{i}" for i in range(20))]


def files(folder: Path, **parts: str) -> Path:
    for name, text in parts.items():
        path = folder / glue_data.TASKS[name.split("_")[0]].files[name.split("_")[1]][0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_rows_are_read_as_each_source_writes_them(tmp_path: Path) -> None:
    files(
        tmp_path,
        sst2_dev="sentence\tlabel\na charming journey . \t1\n",
        mrpc_dev='\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tHe said " yes .\tShe said no .\n',
        rte_dev="index\tsentence1\tsentence2\tlabel\n0\tA b.\tC.\tnot_entailment\n",
        cola_train="gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThe rode.\n",
    )
    row = glue_data.Example
    assert glue_data.read("sst2", tmp_path, "dev") == [row("a charming journey .", None, 1)]
    assert glue_data.read("mrpc", tmp_path, "dev") == [row('He said " yes .', "She said no .", 0)]
    assert glue_data.read("rte", tmp_path, "dev") == [row("A b.", "C.", 1)]
    assert glue_data.read("cola", tmp_path, "train") == [row("The sailors rode.", None, 1), row("The rode.", None, 0)]
    with pytest.raises(InputError, match="out_of_domain_dev.tsv|in_domain_dev.tsv"):
        glue_data.read("cola", tmp_path, "dev")
    files(tmp_path, sst2_train="sentence\tlabel\nfine\t1\nbroken\t7\n")
    with pytest.raises(InputError, match="line 3: .*no label of 0, 1"):
        glue_data.read("sst2", tmp_path, "train")


@pytest.mark.skipif(not REAL.exists(), reason="GLUE is not unpacked in .data")
def test_the_real_sets_have_their_official_sizes() -> None:
    sizes = {"sst2": (67349, 872), "mrpc": (3667, 408), "rte": (2490, 277), "cola": (8551, 1043)}
    assert {n: tuple(len(glue_data.read(n, REAL, s)) for s in ("train", "dev")) for n in sizes} == sizes


def test_official_figures_by_hand() -> None:
    """Answers 1 1 0 0 0 for truths 1 0 1 0 0: precision 1/2, recall 1/2; Matthews (1*2 - 1*1) / sqrt(2*3*2*3) = 1/6."""
    answers, truths = [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]
    assert f1(answers, truths) == pytest.approx(50) and matthews(answers, truths) == pytest.approx(100 / 6)
    assert matthews([1, 1], [1, 0]) == 0 and f1([0, 0], [1, 0]) == 0 and matthews([0, 1], [1, 0]) == pytest.approx(-100)


def test_no_text_is_both_learnt_and_calibrated_on() -> None:
    rows = [glue_data.Example(f"w{i % 15}", None, i % 2) for i in range(40)]
    learn, held = glue_data.parted(rows, 5)
    assert len(held) == 5 and not {r.first for r in learn} & {r.first for r in held} and len(learn) >= 20
    assert glue_data.parted(rows, 5) == (learn, held)


def test_held_rows_are_whole_texts_and_their_parts_are_not_learnt_from() -> None:
    """Sentences a b c d and e f g with phrases; 'c e' is in none, letters are no words ('b' in 'bb'), and 'c' is in 'c e' too."""
    texts = ["a b c d", "b c", "a", "c", "e f g", "f", "c e", "bb"]
    rows = [glue_data.Example(text, None, 1) for text in texts]
    for seed in range(6):
        learn, held = glue_data.parted(rows, 1, seed)
        (whole,) = (row.first for row in held)
        assert whole in {"a b c d", "e f g", "c e", "bb"}
        gone = {"a b c d": {"b c", "a"}, "e f g": {"f"}}.get(whole, set())
        assert {row.first for row in learn} == set(texts) - {whole} - gone


class Spaces:
    """A tokenizer of spaces, for tests."""

    pad_token_id = 0

    def __call__(self, first: list[str], second: Any, truncation: bool, max_length: int) -> dict[str, Any]:
        ids = [[len(word) for word in text.split()][:max_length] for text in first]
        return {"input_ids": ids, "attention_mask": [[1] * len(i) for i in ids]}


def test_an_epoch_has_every_row_once_in_batches_of_like_length() -> None:
    rows = glue_data.Encoded([glue_data.Example("x " * (1 + i % 9), None, 0) for i in range(96)], Spaces(), 64)
    epoch = [rows.drawn(step, 4) for step in range(24)]
    assert sorted(r for batch in epoch for r in batch) == list(range(96)) and epoch == [rows.drawn(s, 4) for s in range(24)]
    assert max(max(map(rows.length, b)) - min(map(rows.length, b)) for b in epoch) <= 1
    assert epoch != [rows.drawn(step, 4) for step in range(24, 48)]
    inputs, labels = rows.batch([0, 1])
    assert inputs["attention_mask"].tolist() == [[1, 0], [1, 1]] and labels.tolist() == [0, 0]


def test_a_front_by_hand() -> None:
    """Three rows, three exits. Above 0.5: row 1 leaves at 1 (wrong), row 2 at 2 (right), row 3 at 3 (right)."""
    nan = float("nan")
    book = glue_judge.Book(
        torch.tensor([[0.9, 0.9, nan], [0.2, 0.7, nan], [0.1, 0.3, nan]]), torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]]), [0, 1, 1]
    )
    found = {p["threshold"]: p for p in book.front(accuracy)}
    assert found[1.0] == {"threshold": 1.0, "score": 100.0, "depth": 3.0}
    assert book.at(torch.tensor([1, 2, 3]), accuracy) == {"score": pytest.approx(200 / 3), "depth": 2.0}
    assert book.oracle(accuracy) == {"score": 100.0, "depth": pytest.approx((2 + 1 + 3) / 3)}
    assert [p["score"] for p in book.static(accuracy)] == [pytest.approx(100 / 3), pytest.approx(200 / 3), 100.0]
    best = glue_judge.chosen(list(found.values()), 60.0)
    assert best["score"] >= 60 and best["depth"] == min(p["depth"] for p in found.values() if p["score"] >= 60) < 3
    assert glue_judge.chosen(list(found.values()), 101.0)["threshold"] == 1.0


def model_folder(folder: Path) -> Path:
    """A random BERT of three layers whose tokenizer knows a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_the_whole_way_and_a_second_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = (glue_learn.Tuning(1e-2, 1.0, "cosine", 0.5), glue_learn.Tuning(1e-2, 1.0, "linear"))  # a random model learns from nothing
    monkeypatch.setattr(glue_learn, "TUNINGS", quick)
    dice = torch.Generator().manual_seed(0)

    def rows(count: int) -> str:
        lines = []
        for _ in range(count):
            label = int(torch.randint(2, (1,), generator=dice))
            filler = [f"w{int(i)}" for i in torch.randint(20, (int(torch.randint(2, 6, (1,), generator=dice)),), generator=dice)]
            lines.append(" ".join([*filler, *["good" if label else "bad"] * 3]) + f"\t{label}")
        return "sentence\tlabel\n" + "\n".join(lines) + "\n"

    data = files(tmp_path / "glue", sst2_train=rows(400), sst2_dev=rows(24))
    arguments = [
        str(model_folder(tmp_path / "model")),
        "--data",
        str(data),
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--epochs", "1", "--repeats", "1", "--soup", "2"]
    run = glue.main(arguments)
    assert set(run["methods"]) == {"deebert", "fastbert", "pabee", "berxit", "palbert"}
    assert run["summary"]["glue/sst2/full"] >= 80  # one word decides: a model that learnt nothing has 50
    for found in run["methods"].values():
        assert found["fronts"]["dev"][0]["depth"] == 3.0 and sum(found["live"]["exits"]) == 24
        replayed = min(found["fronts"]["dev"], key=lambda p: abs(p["depth"] - found["live"]["depth"]))
        assert abs(replayed["depth"] - found["live"]["depth"]) < 0.3
    (kept,) = (tmp_path / "out").glob("*-glue-*.json")
    assert json.loads(kept.read_text())["status"] == "done"
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"glue/sst2/full", "glue/sst2/macs_saved_at_99"} <= set(figures)
    first = tmp_path / "work" / "glue-sst2" / "tuned-1"
    taken, average, last = (load_file(first / f"{name}.safetensors") for name in ("done", "average", "model"))
    assert all(torch.equal(taken[name], average[name]) for name in taken) and any(
        not torch.equal(taken[name], last[name]) for name in taken
    )
    done = tmp_path / "work" / "glue-sst2" / "tuned-2" / "done.safetensors"
    written = done.stat().st_mtime_ns
    again = glue.main(arguments)
    assert done.stat().st_mtime_ns == written  # nothing was trained again
    with pytest.raises(InputError, match="was begun with.*--work"):
        glue.main([*arguments, "--seed", "1"])
    assert again["full"] == run["full"] and again["methods"]["pabee"]["live"] == run["methods"]["pabee"]["live"]
