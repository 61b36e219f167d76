"""Language models by what a user writes for them: folders, GGUF files, and what is said where something is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.cases import made
from tests.speakers import saved, tokenizer
from tests.test_cli import call, parsed

from exitwise import Engine
from exitwise.errors import CheckpointError, InputError
from exitwise.pretrained import Speaker, language_model, source_of

TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d e"}]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=torch.arange(5, 40)[None]).logits
    return out


def test_a_folder_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, chat=True)
    speaker = language_model(folder)
    assert torch.equal(logits(speaker.model), logits(model)) and not speaker.model.training
    assert speaker.notes == () and speaker.chats
    assert speaker.written("the dog") == "<|user|>the dog<|assistant|>"
    assert speaker.written(TURNS) == "<|user|>a b<|assistant|>c<|user|>d e<|assistant|>"
    assert speaker.written("the dog", chat=False) == "the dog"
    plain = Speaker(speaker.model, tokenizer(chat=False))
    assert plain.written("the dog") == "the dog"
    for asked in (TURNS, "the dog"):
        with pytest.raises(InputError, match="no chat template"):
            plain.written(asked, chat=True)  # type: ignore[arg-type]


def test_prompts_of_unlike_length_are_padded_on_the_left_and_answered_as_if_alone(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, pad=False)
    told: list[str] = []
    speaker = language_model(folder, note=told.append)
    assert told == list(speaker.notes) and "no pad token; '</s>' is taken" in told[0]
    texts = ["how many apples", "a", "the quick brown fox jumps"]
    batch = speaker.prompts(texts)
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"].all()
    together = Engine(speaker.model, "never").generate(**batch, max_new_tokens=6, do_sample=False).sequences[:, -6:]
    for row, each in enumerate(texts):
        alone = speaker.model.generate(**speaker.prompts([each]), max_new_tokens=6, do_sample=False)[0, -6:]
        assert torch.equal(alone, together[row])
    assert speaker.text(batch["input_ids"][2]) == texts[2]


def test_the_other_tokens_that_a_pad_can_be(tmp_path: Path) -> None:
    bare = tokenizer(pad=False)
    for name, instead in (("eos_token", "<s>"), ("bos_token", "<unk>"), ("unk_token", "<pad>")):
        setattr(bare, name, None)
        folder = tmp_path / name
        saved(folder)
        bare.save_pretrained(folder)
        speaker = language_model(folder)
        assert speaker.tokenizer.pad_token == instead
        assert speaker.prompts(["a", "b c d"])["attention_mask"].sum() < 10


def test_prompts_that_cannot_be_asked(tmp_path: Path) -> None:
    speaker = language_model(saved(tmp_path)[1])
    with pytest.raises(InputError, match="No prompt was given"):
        speaker.prompts([])
    for empty in ("", "  "):
        with pytest.raises(InputError, match="Prompt 1 is empty"):
            speaker.prompts(["a", empty])
    speaker.tokenizer.add_tokens([f"<{i}>" for i in range(30)])
    with pytest.raises(InputError, match=r"Prompt 0 has the token \d+, but the model knows 99"):
        speaker.prompts(["a <29>"])


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    for case, name in (
        ("bart", "BartForConditionalGeneration"),
        ("bert", "BertForSequenceClassification"),
        ("bert-masked", "BertForMaskedLM"),
    ):
        folder = tmp_path / case
        made(case)[0].save_pretrained(folder)
        with pytest.raises(CheckpointError, match=f"no decoder-only language model but a {name}"):
            language_model(folder)


def test_what_is_not_there_is_refused_with_a_way_out(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "whole")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty has no config.json"):
        language_model(tmp_path / "empty")
    for gone in (tmp_path / "gone.gguf",):
        with pytest.raises(CheckpointError, match="gone.gguf does not exist"):
            language_model(gone)
    (tmp_path / "fake.gguf").write_bytes(b"<html> not found")
    with pytest.raises(CheckpointError, match="fake.gguf is not a GGUF file: it begins with b'<htm'"):
        language_model(tmp_path / "fake.gguf")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="notes.txt is a file, but no GGUF"):
        language_model(tmp_path / "notes.txt")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer that loads"):
        language_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with pytest.raises(CheckpointError, match="missing"):
        language_model(folder)


def test_a_gguf_file_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF....")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else find(name, *a))
    with pytest.raises(CheckpointError, match=r"pip install 'exitwise\[gguf\]'"):
        source_of(tmp_path / "model.gguf")


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed")
def test_a_gguf_file_is_the_model_that_was_written_into_it(tmp_path: Path) -> None:
    from tests import gguf_files

    model, _ = made("llama")
    words = tokenizer(pad=False, chat=True)
    file = gguf_files.write(tmp_path / "tiny.gguf", model, words)
    assert source_of(tmp_path) == source_of(file)  # the only one in its folder
    speaker = language_model(file)
    torch.testing.assert_close(logits(speaker.model), logits(model), atol=1e-6, rtol=1e-6)  # weights are read back exactly
    assert speaker.chats and speaker.prompts(["the dog"], chat=False)["input_ids"][0].tolist() == words("the dog")["input_ids"]
    body = parsed("cut", file, "--depth", 2, "--out", tmp_path / "small")
    assert body["layers"] == 4 and language_model(tmp_path / "small").model.config.num_hidden_layers == 2
    assert parsed("inspect", file)["family"] == "llama"
    (tmp_path / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="holds 2 GGUF files: name one"):
        source_of(tmp_path)
    (tmp_path / "half.gguf").write_bytes(file.read_bytes()[:600])
    with pytest.raises(CheckpointError, match="half.gguf is not a model that transformers can read"):
        language_model(tmp_path / "half.gguf")


def test_the_commands_take_a_language_model(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, pad=False)
    body = parsed("run", folder, "--prompt", "the quick brown", "--method", "static", "--set", "decoder=2", "--longest", 5)
    assert [each["depth"] for each in body["tokens"]][-4:] == [2, 2, 2, 2]
    assert body["calls"] == 4 + 4 * 2  # the prompt and its first token at full depth, the other four as asked
    assert "no pad token" in call("run", folder, "--prompt", "a", "--longest", 2).stderr
