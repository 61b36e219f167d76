"""A model cut at depth N is an ordinary checkpoint that says what the whole one's read-out says there; and what cannot be cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.cases import CASES, Table, forced, made
from tests.speakers import saved
from tests.test_cli import call, parsed
from transformers import AutoModelForCausalLM, AutoTokenizer

from exitwise import Engine, families
from exitwise.cutting import cut
from exitwise.errors import CheckpointError, DepthError, FamilyError

LANGUAGE = [case for case, (family, _) in CASES.items() if (found := families.load(family).language) is not None and found.cross is None]


def at_depth(model: Any, inputs: dict[str, Any], depth: int) -> torch.Tensor:
    """What the whole model says when every token leaves after `depth` layers, without a cache."""
    return Engine(model, forced({"decoder": Table(((depth,),))})).run(**inputs, use_cache=False).logits


@pytest.mark.parametrize("case", LANGUAGE)
@pytest.mark.parametrize("depth", [1, 3])
def test_a_cut_model_says_what_the_readout_says_at_that_depth(case: str, depth: int, tmp_path: Path) -> None:
    model, inputs = made(case)
    want = at_depth(model, inputs, depth)
    done = cut(model, depth, tmp_path / "small")
    small, report = AutoModelForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True, attn_implementation=kernel(model))
    assert not any(report.values()) and type(small) is type(model)
    with torch.no_grad():
        assert torch.equal(small.eval()(**inputs).logits, want)
    assert (want - at_depth(model, inputs, 4)).abs().max() > 0.1
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (small.get_output_embeddings().weight is small.get_input_embeddings().weight) == tied
    assert done.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small)) and done.layers == 4
    assert len(families.of(small)[1].stacks_of(small)[0].layers(small)) == depth
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def kernel(model: Any) -> str:
    """The attention of the model, which no checkpoint keeps."""
    return str(model.config._attn_implementation)


def test_the_cut_model_goes_on_as_a_model_of_its_own(tmp_path: Path) -> None:
    """Generated text of windowed layers, whose list in the configuration is cut with them; the original is unchanged."""
    model, inputs = made("gemma")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut(model, 3, tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert small.config.layer_types == model.config.layer_types[:3] and len(model.config.layer_types) == 4
    want = Engine(model, forced({"decoder": Table(((3,),))})).generate(**inputs, max_new_tokens=12, do_sample=False)
    assert torch.equal(small.generate(**inputs, max_new_tokens=12, do_sample=False), want.sequences)
    assert model.config.num_hidden_layers == 4 and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_weights_keep_their_dtype(tmp_path: Path) -> None:
    model, _ = made("gpt2")
    cut(model.to(torch.bfloat16), 2, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["n_layer"] == 2
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto")
    assert small.dtype == torch.bfloat16 and torch.equal(small.transformer.wte.weight, model.transformer.wte.weight)


def test_what_cannot_be_cut_is_refused_with_a_way_out(tmp_path: Path) -> None:
    model, _ = made("llama")
    for depth in (0, 5):
        with pytest.raises(DepthError, match=r"which has 4 layers\. Depths run 1\.\.4"):
            cut(model, depth, tmp_path / "small")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(CheckpointError, match="not empty.*nothing is overwritten"):
        cut(model, 2, tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"
    with pytest.raises(FamilyError, match="no decoder alone but model.encoder.layers"):
        cut(made("bart")[0], 2, tmp_path / "small")
    model.config.num_hidden_layers = 7
    with pytest.raises(FamilyError, match="num_hidden_layers=7, but it has 4"):
        cut(model, 2, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_the_command_cuts_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "whole", pad=False)
    body = parsed("cut", folder, "--depth", 2, "--out", tmp_path / "small")
    assert body == {"out": str(tmp_path / "small"), "depth": 2, "layers": 4, "parameters": body["parameters"]}
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert tokens("the dog")["input_ids"] == AutoTokenizer.from_pretrained(folder)("the dog")["input_ids"]
    assert tokens.pad_token is None  # copied as it is
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        assert torch.equal(small(input_ids=ids).logits, at_depth(model, {"input_ids": ids}, 2))
    assert "4 of 4 layers" in call("cut", folder, "--depth", 4, "--out", tmp_path / "all").stdout
    assert "nothing is overwritten" in call("cut", folder, "--depth", 2, "--out", tmp_path / "small", code=2).stderr
    assert "Depths run 1..4" in call("cut", folder, "--depth", 9, "--out", tmp_path / "nine", code=2).stderr
