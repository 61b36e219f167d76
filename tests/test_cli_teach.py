"""`exitwise train --method` on a tiny language model: each paper's training from files to an export, resumed, and what is refused."""

import json
import sys

import pytest
import torch
from tests.train.language.test_texts import TEMPLATE, WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from exitwise import Engine, teach
from exitwise.cli import app
from exitwise.lm.adapter import load_adapter


def call(*args, code=0):
    result = CliRunner().invoke(app, ["train", *(str(a) for a in args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
        initializer_range=0.3, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]", chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """The answer repeats the question's first word and names its successor."""
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    turns = [(a, b) for a, b in zip("abcdefghi", "bcdefghij")]
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": f"{a} {b}"}]} for a, b in turns]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


OPTIONS = {"soft": ["depths=[2,4]"], "layerskip": ["every=2"], "free": ["depth=2", "distil=0.01"], "skipdecode": ["length=3"]}


def taught(model, chats, out, *more):
    return json.loads(call(model, "--data", chats, "--out", out, "--lr", 5e-3, "--rows", 9, "--warmup", 0, "--json", *more).stdout)


def answer(model, tokenizer, word):
    ids = tokenizer(f"<user> {word} [end] <bot> ", return_tensors="pt")["input_ids"]
    said = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=3, pad_token_id=0)
    return tokenizer.convert_ids_to_tokens(said[0, -3:].tolist())


@pytest.mark.parametrize("name", [name for name in teach.names() if not teach.load(name).frozen])
def test_a_trained_model_is_an_ordinary_checkpoint(name, model, chats, tmp_path) -> None:
    """It says at full depth what it was taught; what learnt under a schedule of layers says so only under it, and is loaded alone."""
    sets = [part for option in OPTIONS.get(name, []) for part in ("--set", option)]
    told = taught(model, chats, tmp_path, "--method", name, "--steps", 100, *sets)
    assert told["method"] == name and told["samples"] == 9 and told["tokens"] == 27 and told["steps"] == 100
    trained, tokenizer = AutoModelForCausalLM.from_pretrained(told["export"]), AutoTokenizer.from_pretrained(told["export"])
    assert answer(trained, tokenizer, "c") == ["c", "d", "[end]"] or name == "skipdecode"


def test_a_sorted_sub_model_is_a_model_that_answers(model, chats, tmp_path) -> None:
    """Two of four layers, cut off by hand, say what they were trained to say."""
    told = taught(model, chats, tmp_path, "--method", "soft", "--steps", 120, "--set", "depths=[2,4]")
    cut, tokenizer = (
        AutoModelForCausalLM.from_pretrained(told["export"], num_hidden_layers=2),
        AutoTokenizer.from_pretrained(told["export"]),
    )
    assert answer(cut, tokenizer, "e") == ["e", "f", "[end]"]


def test_what_is_trained_beside_a_frozen_model_is_kept_alone(model, chats, tmp_path) -> None:
    told = json.loads(
        call(model, "--method", "kangaroo", "--data", chats, "--out", tmp_path / "k", "--steps", 3, "--set", "depth=1", "--json").stdout
    )
    adapter = load_adapter(tmp_path / "k" / "export").adapter
    assert adapter.config.depth == 1 and adapter.config.width == 16 and told["export"].endswith("export")
    assert not (tmp_path / "k" / "export" / "config.json").exists()


def test_tuned_exits_are_an_engine_that_decodes(model, chats, tmp_path) -> None:
    """Trained at two depths, loaded in Python and by `run`, under their method's name or none; another name is refused."""
    call(model, "--method", "eellm", "--data", chats, "--out", tmp_path, "--steps", 60, "--lr", 2e-2, "--rows", 9, "--set", "depths=[1,2]")
    export = tmp_path / "export"
    assert not (export / "config.json").exists()
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    engine = Engine.load(export, loaded).with_settings(decoder=0.3)
    assert engine.exits.depths == (1, 2) and float(engine.exits.ramps.at["1"].down.weight.detach().abs().max()) > 0
    given = dict(tokenizer("<user> c [end] <bot> ", return_tensors="pt"))
    out = engine.generate(input_ids=given["input_ids"], max_new_tokens=6)
    assert out.depth.min() < 4
    tied = Engine(loaded, "eellm", depths=(1, 2), decoder=0.3).generate(input_ids=given["input_ids"], max_new_tokens=6)
    assert not torch.equal(out.sequences, tied.sequences)
    for more in ([], ["--method", "eellm"]):
        asked = [
            "run",
            model,
            "--prompt",
            "<user> c [end] <bot>",
            "--raw",
            "--exits",
            export,
            "--set",
            "decoder=0.3",
            "--no-macs",
            "--json",
        ]
        told = json.loads(CliRunner().invoke(app, [str(a) for a in [*asked, "--max-new-tokens", 6, *more]]).stdout)
        assert told["method"] == "eellm" and [t["depth"] for t in told["tokens"]] == out.depth[0].tolist()
    said = CliRunner().invoke(app, [str(a) for a in [*asked, "--method", "soft"]])
    assert said.exit_code == 2 and "holds exits of eellm, not of soft" in " ".join(said.output.split())


def test_a_run_goes_on_and_another_is_refused(model, chats, tmp_path) -> None:
    given = [model, "--method", "calm", "--data", chats, "--out", tmp_path, "--validation", chats, "--validate-every", 0.0]
    call(*given, "--steps", 2)
    told = json.loads(call(*given, "--steps", 5, "--json").stdout)
    assert told["steps"] == 5 and told["exported"] == "best"
    assert "learnt.method was 'calm' and is 'soft'" in call(*[*given[:2], "soft", *given[3:]], "--steps", 5, code=2).output


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--method", "sofd"], "Did you mean 'soft'?"),
        (["--method", "base"], "No training is called 'base'"),
        (["--method", "soft", "--set", "depth=3"], "Did you mean 'depths'?"),
        (["--method", "soft", "--set", "depths=[9]"], "within 1..4"),
        (["--method", "soft", "--task", "caption"], "--task belong to the trainings of unified models"),
        (["--method", "soft", "--patience", "2"], "--patience counts validations"),
        (["--method", "layerskip", "--set", "curriculum=gradual", "--seconds", "1"], "give their number"),
        (["--method", "layerskip", "--set", "curriculum=odd"], "rotational, gradual, none"),
        (["--method", "free", "--set", "depth=4"], "Allowed: 1..3"),
        (["--method", "kangaroo", "--set", "depth=4"], "Allowed: 1..3"),
        (["--method", "kangaroo", "--lora", "4"], "nothing for --lora to update"),
        (["--method", "eellm", "--set", "weights=[1]"], "Give one for each"),
    ],
)
def test_what_is_refused(more, says, model, chats, tmp_path) -> None:
    ends = [] if "--seconds" in more else ["--steps", 1]
    assert says in " ".join(call(model, "--data", chats, "--out", tmp_path, *ends, *more, code=2).output.split())


@pytest.mark.parametrize("name", ["soft", "layerskip", "free"])
def test_low_rank_updates_are_merged_into_an_ordinary_model_that_can_be_cut(name, model, chats, tmp_path) -> None:
    pytest.importorskip("peft", reason="low-rank updates are made by peft, which is not installed")
    sets = [part for option in OPTIONS.get(name, []) for part in ("--set", option)]
    given = [model, "--method", name, "--data", chats, "--out", tmp_path, "--lora", 2, "--lr", 1e-2, *sets]
    call(*given, "--steps", 3)
    told = json.loads(call(*given, "--steps", 5, "--json").stdout)  # goes on
    assert told["steps"] == 5 and told["learnt"]["lora"] == 2
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (model, tmp_path / "export"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("embed" in name or "norm" in name for name in moved)
    done = CliRunner().invoke(app, ["cut", str(tmp_path / "export"), "--depth", "2", "--out", str(tmp_path / "short")])
    assert done.exit_code == 0, done.output
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "short").config.num_hidden_layers == 2
    assert "learnt.lora was 2 and is 0" in call(*given[:7], *given[9:], "--steps", 6, code=2).output.replace("\n", " ")


def test_without_peft_low_rank_updates_say_what_to_install(model, chats, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # an import of it now fails as if it were not there
    said = call(model, "--method", "soft", "--data", chats, "--out", tmp_path, "--steps", 1, "--lora", 2, code=2).output
    assert "exitwise[lora]" in " ".join(said.split())


def test_the_list_of_trainings_names_their_options() -> None:
    said = call("--methods").output
    assert all(name in said for name in teach.names()) and "depths=()" in said and "arXiv:2404.16710" in said
