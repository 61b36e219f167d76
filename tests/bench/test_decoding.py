"""Decoding compared and measured on tiny language models: turns, equality, going on, static cuts, long runs, chosen settings."""

from __future__ import annotations

import copy
import json
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.cases import CASES
from tests.speakers import saved

from exitwise import Engine, families
from exitwise.bench import decoding
from exitwise.bench.decode import choose, forced, kinds, long, memory, roofline, run, table, ways
from exitwise.errors import FingerprintError
from exitwise.lm.adapter import Adapter, AdapterConfig, save_adapter
from exitwise.pretrained import Speaker, language_model

TEXTS = ("the quick brown fox", "how many apples", "a b c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("spoken") / "model")[1]


@pytest.fixture(scope="module")
def speaker(folder: Path) -> Speaker:
    return language_model(folder)


@pytest.fixture
def prompts(speaker: Speaker) -> list[run.Asked]:
    return [run.Asked(str(i), speaker.prompts([text])) for i, text in enumerate(TEXTS)]


def said(tokens: list[int], seen: list[str] | None = None, key: str = "said") -> ways.Way:
    """A way that writes what it is told to."""

    def write(given: ways.Inputs, most: int) -> ways.Text:
        if seen is not None and most != run.WARM:
            seen.append(key)
        return ways.Text(tokens[:most])

    return ways.Way(key, key, partial(nullcontext, write), {"tokens": tokens})


def setup(out: Path, tokens: int = 8) -> run.Setup:
    return run.Setup(tokens, out, "try", {"data": "here"})


def row(made: dict[str, Any], key: str) -> dict[str, Any]:
    return next(each for each in made["decode"] if each["key"] == key)


def test_lossless_ways_write_what_generate_writes_and_others_are_found_out(
    speaker: Speaker, prompts: list[run.Asked], tmp_path: Path
) -> None:
    model = speaker.model
    soft = Engine(model, "soft", decoder=0.1, minimum=1, every=1)
    others = [
        ways.ours("never", Engine(model, "never")),
        ways.ours("layerskip", Engine(model, "layerskip", depth=2)),
        ways.ours("soft", soft),
    ]
    made = run.run(model, prompts, [ways.plain(model), *others, ways.assistant(model)], [ways.Absent("x", "not here")], setup(tmp_path))
    for key in ("generate", "never", "layerskip", ways.ASSISTANT):
        assert (row(made, key)["equal"], row(made, key)["agreement"], row(made, key)["lossless"]) == (3, 1.0, True)
    found = row(made, "soft")
    assert found["unequal"] == 3 and 0 < found["agreement"] < 1 and not found["lossless"] and found["depth"] < 4
    assert row(made, "layerskip")["acceptance"] is not None and row(made, "never")["depth"] == 4
    assert row(made, "never")["calls_per_token"] == 4  # one call of each layer for a token, the prompt's for the first
    text = table.render(made)
    assert "not compared: x: not here" in text and "0/3" in text and "3/3" in text
    written = json.loads((tmp_path / made["file"]).read_text())
    assert written["status"] == "done" and written["prompts"][0]["ways"]["soft"]["tokens"] == 8  # counts, never the texts


def test_agreement_is_what_the_whole_model_says_after_the_same_text(speaker: Speaker, prompts: list[run.Asked], tmp_path: Path) -> None:
    """By hand: its own first token, then a strange one, then what it says after that one."""
    model, given = speaker.model, prompts[0].inputs
    first = model.generate(**given, max_new_tokens=1, do_sample=False)[0, -1].item()
    strange = (first + 1) % 90
    after = model(input_ids=torch.cat([given["input_ids"], torch.tensor([[first, strange]])], 1)).logits[0, -1].argmax().item()
    made = run.run(model, prompts[:1], [ways.plain(model), said([first, strange, after])], [], setup(tmp_path, 3))
    assert row(made, "said")["agreement"] == pytest.approx(2 / 3) and row(made, "said")["unequal"] == 1
    assert made["prompts"][0]["ways"]["said"]["first_unlike"] == 1 and row(made, "said")["near"] == 0


def test_each_way_is_the_first_in_its_turn(speaker: Speaker, prompts: list[run.Asked], tmp_path: Path) -> None:
    seen: list[str] = []
    plain = said([5, 6], seen, ways.PLAIN)
    run.run(speaker.model, prompts, [plain, said([5, 6], seen, "b"), said([5, 6], seen, "c")], [], setup(tmp_path, 2))
    g = ways.PLAIN
    assert seen == [g, "b", "c", "b", "c", g, "c", g, "b"]


def test_ratios_are_of_tokens_a_second_on_the_same_prompt() -> None:
    def told(seconds: float, tokens: int) -> dict[str, Any]:
        text = ways.Text(list(range(tokens)), rounds=2, drafted=4, accepted=3).to_dict()
        return {**text, "seconds": seconds, "equal": True, "agrees": 1.0, "near": False}

    lines = [{"ways": {ways.PLAIN: told(4.0, 8), "never": told(2.0, 8), "x": told(seconds, 8)}} for seconds in (1.0, 2.0, 8.0)]
    found = run._row(said([], key="x"), lines)
    assert found["over_generate"]["median"] == 2.0 and found["over_full"]["median"] == 1.0 and found["tokens_per_second"]["median"] == 4.0
    assert found["acceptance"] == 0.75 and found["tokens_per_round"] == 4.0


def test_a_stopped_run_goes_on_with_the_next_prompt(speaker: Speaker, prompts: list[run.Asked], tmp_path: Path) -> None:
    seen: list[str] = []

    def ended(given: ways.Inputs, most: int) -> ways.Text:
        if len(seen) == 3:
            raise KeyboardInterrupt
        return ways.Text([1])

    def both(broken: bool) -> list[ways.Way]:
        late = ways.Way("late", "late", partial(nullcontext, ended if broken else lambda given, most: ways.Text([1])), {})
        return [said([1], seen, ways.PLAIN), late]

    with pytest.raises(KeyboardInterrupt):
        run.run(speaker.model, prompts, both(True), [], setup(tmp_path, 2))
    assert seen == [ways.PLAIN] * 3  # the third prompt's turn began with generate
    seen.clear()
    made = run.run(speaker.model, prompts, both(False), [], setup(tmp_path, 2))
    assert seen == [ways.PLAIN] and row(made, "late")["equal"] == 3 and not (tmp_path / ".unfinished").exists()
    seen.clear()
    run.run(speaker.model, prompts, both(False), [], setup(tmp_path, 3))
    assert len(seen) == 3  # other lengths are another run


def test_what_fails_is_named_and_the_others_are_tried(speaker: Speaker, prompts: list[run.Asked]) -> None:
    @contextmanager
    def broken() -> Iterator[ways.Write]:
        raise IndexError("list index out of range")
        yield  # type: ignore[unreachable]

    able, absent = ways.tried([ways.Way("b", "b", broken, {}), said([1])], prompts[0].inputs)
    assert [way.key for way in able] == ["said"] and absent == [ways.Absent("b", "IndexError: list index out of range")]
    able, absent = ways.of_methods(speaker.model, ["never", "layerskip"], {"layerskip": {"depth": 9}}, {})
    assert [way.key for way in able] == ["never"] and "depth=9" in absent[0].reason


def test_transformers_drafting_leaves_the_model_whole_whatever_happens(speaker: Speaker) -> None:
    with pytest.raises(ZeroDivisionError), ways.assistant(speaker.model).opened():
        speaker.model.config.num_hidden_layers = 2
        raise ZeroDivisionError
    assert speaker.model.config.num_hidden_layers == 4


def test_economize_takes_part_where_it_is_installed(speaker: Speaker, prompts: list[run.Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways.importlib.util, "find_spec", lambda name: None)
    (absent,) = ways.economized(speaker.model)
    assert isinstance(absent, ways.Absent) and "pip install" in absent.reason


@pytest.mark.filterwarnings("default")  # another project's
def test_economize_writes_the_same(speaker: Speaker, prompts: list[run.Asked]) -> None:
    pytest.importorskip("economize", reason="the package economize is not installed")
    plain, given = ways.plain(speaker.model), prompts[0].inputs
    for way in ways.economized(speaker.model):
        assert isinstance(way, ways.Way)
        with way.opened() as write:
            text = write(given, 8)
        with plain.opened() as write:
            assert write(given, 8).tokens == text.tokens
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in speaker.model.modules())


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("depths", [[2], [1, 4, 2, 3], [4, 1, 1]])
def test_the_ideal_says_what_forced_exits_say(case: str, depths: list[int]) -> None:
    """Both run the prompt at full depth and each row at its own from then on; rows that stay share no layer call with those that left."""
    torch.manual_seed(0)
    model, _ = CASES[case][1]()
    given = forced.inputs(model, 5, 6)
    out = forced.exits(model, depths).generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=[])
    dealt = [depths[row % len(depths)] for row in range(5)]
    assert out.depth.tolist() == [[4, *[depth] * 5] for depth in dealt]
    said = forced.static(model, given["input_ids"], dealt, 6)
    assert said == out.sequences[:, 6:].tolist()
    assert depths != [1, 4, 2, 3] or said != forced.static(model, given["input_ids"], [4] * 5, 6)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_the_ideal_cut_for_the_prompt_too_is_a_shorter_model(case: str) -> None:
    torch.manual_seed(0)
    model, _ = CASES[case][1]()
    given = forced.inputs(model, 3, 6)
    said = forced.static(model, given["input_ids"], [2, 4, 1], 5, whole_prompt=False)
    for row, depth in enumerate((2, 4, 1)):
        short = copy.deepcopy(model)
        del families.of(short)[1].stacks_of(short)[0].layers(short)[depth:]
        short.config.num_hidden_layers = depth
        alone = short.generate(given["input_ids"][row : row + 1], max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert said[row] == alone[0, 6:].tolist()


def test_the_realised_share_is_taken_of_every_turn(speaker: Speaker) -> None:
    found = forced.realised(speaker.model, 4, [1, 4], 2, 3)
    assert set(found["median_s"]) == {"full", "exits", "ideal", "cut"}
    m = found["median_s"]
    for name, least in (("realised", "ideal"), ("realised_cut", "cut")):
        assert found[name] == pytest.approx((m["full"] - m["exits"]) / (m["full"] - m[least])) and len(found[f"{name}_iqr"]) == 2
    assert found["possible"] == pytest.approx(1 - m["ideal"] / m["full"])
    assert all(len(times) == 2 for times in found["times_s"].values())


def test_a_long_batch_says_what_its_rows_say_alone(speaker: Speaker) -> None:
    texts = long.prompts(99, 3, 12)
    assert [len(text) for text in texts] == [4, 8, 12]
    found = long.measure(Engine(speaker.model, "never"), texts, 24)
    assert found["unequal"] == 0 and found["alone"] == [0, 1, 2] and len(found["by_step"]) in (0, 24)
    unlike = long.measure(Engine(speaker.model, "random", decoder=(1, 0, 0, 1)), texts, 24)  # draws that hang on the batch
    assert unlike["unequal"] > 0 and unlike["unlike"][0]["first"] < 24


def test_what_grows_beyond_the_cache(speaker: Speaker) -> None:
    """Keys and values of 4 layers, 2 heads of 8, float32: 512 bytes a token and row."""
    assert long.cache_mib(speaker.model, 2048) == 1.0
    marks = [(step, 100.0 + step / 1024) for step in range(0, 4096, 256)]  # two rows: 1/1024 MiB a step
    assert long._beyond(speaker.model, marks, 2) == pytest.approx(0.0)
    assert long._beyond(speaker.model, [(step, mib + step / 256) for step, mib in marks], 2) == pytest.approx((3840 - 512) / 256)


def test_peaks_are_those_of_fresh_processes(folder: Path) -> None:
    found = memory.beside(str(folder), rows=1, prompt=4, tokens=4, repeats=1)
    assert 0.5 < found["peak_over_generate"] < 2 and all(peak > 0.05 for peak in found["peaks_gib"].values())
    assert all(run["peak_gib"] >= run["loaded_gib"] for runs in found["runs"].values() for run in runs)


def test_the_fastest_setting_that_keeps_agreement_is_taken(speaker: Speaker, prompts: list[run.Asked]) -> None:
    engine = Engine(speaker.model, "soft", minimum=1, every=1)
    grid = [{"decoder": 1.0}, {"decoder": 0.0}]
    best, tried = choose.fastest(speaker.model, engine, grid, prompts[:1], 8, 0.99, lambda _: None)
    assert best is not None and best.settings_dict()["decoder"] == 1.0 and tried[0]["agreement"] == 1.0 > tried[1]["agreement"]
    assert choose.fastest(speaker.model, engine, grid[1:], prompts[:1], 8, 0.99, lambda _: None)[0] is None


def adapter(folder: Path, width: int = 32, depth: int = 2) -> Path:
    torch.manual_seed(1)
    save_adapter(Adapter(AdapterConfig(width, 4, 4, depth=depth)), folder)
    return folder


def test_an_adapter_of_another_model_is_refused(speaker: Speaker, prompts: list[run.Asked], tmp_path: Path) -> None:
    engine = ways.with_adapter(speaker.model, adapter(tmp_path / "own"), sure=0.0)
    with ways.ours("k", engine).opened() as mine, ways.plain(speaker.model).opened() as plain:
        assert mine(prompts[0].inputs, 12).tokens == plain(prompts[0].inputs, 12).tokens
    for wrong in ({"width": 64}, {"depth": 4}):
        with pytest.raises(FingerprintError, match="trained for this model"):
            ways.with_adapter(speaker.model, adapter(tmp_path / str(wrong), **wrong))


def test_steps_say_what_they_lack(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(decoding.MODEL, raising=False)
    monkeypatch.delenv(decoding.SECOND, raising=False)
    monkeypatch.delenv(decoding.SPEECH, raising=False)
    parser = ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    decoding.options(parser)

    def steps(*words: str) -> tuple[set[str], str]:
        found, missing = decoding.steps(decoding.Wish.of(parser.parse_args(words)), tmp_path, {}, lambda _: None)
        return {name.removeprefix("decode-") for name in found}, " ".join(missing)

    none = f"No language model is named: decode/ is left out. Give --model FOLDER, or set {decoding.MODEL}."
    assert steps() == ({"kinds"}, f"{none} No speech model is named: decode/whisper is left out. Set {decoding.SPEECH} to its folder.")
    file = tmp_path / "prompts.txt"
    file.write_text("a b c\n")
    found, missing = steps("--model", str(folder), "--data", str(file), "--adapter", str(tmp_path / "none"))
    assert found == {"kinds", "realised", "memory", "long", "roofline", "lossless", "rivals", "lossy"}
    assert "no trained adapter" in missing and "gemma3" in missing
    monkeypatch.setenv(decoding.MODEL, str(folder))
    found, missing = steps("--data", str(file), "--adapter", str(adapter(tmp_path / "adapter")))
    assert "lossy" in found and "no trained adapter" not in missing
    assert "unequal_prompts" in steps("--data", "nowhere.txt")[1]


def test_the_steps_fill_their_keys(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*TEXTS, "over the lazy dog", "how many are left", "e f g"]))
    model = language_model(str(folder)).model
    Engine(model, "eellm", exits=Engine(model, "eellm", depths=(2,)).fresh_exits(0), depths=(2,)).save(tmp_path / "tuned")
    wish = decoding.Wish(
        str(folder), data=file, adapter=adapter(tmp_path / "adapter"), tuned=tmp_path / "tuned", prompts=3, tokens=8, few=1, held=2,
        long=16, repeats=2,
    )  # fmt: skip
    summary: decoding.Summary = {}
    found, _ = decoding.steps(wish, tmp_path / "out", summary, lambda _: None)
    for name in ("realised", "long", "lossless", "lossy"):
        found[f"decode-{name}"]()
    assert summary["decode/unequal_prompts"] == 0 and summary["decode/long_unequal"] == 0
    speeds = ("full_over_generate", "lossless_over_generate", "lossless_over_full", "lossy_over_generate_at_99")
    assert all((summary[f"decode/{key}"] or 0) > 0 for key in speeds)
    for name in ("batch1", "batch16", "batch16_all"):
        assert {f"decode/realised_{name}", f"decode/possible_{name}"} <= set(summary)
    bench = found["decode-lossless"].func.__self__  # type: ignore[attr-defined]
    judged, held = ({each.where for each in part} for part in bench.asked)
    assert len(judged) == 3 and len(held) == 2 and not judged & held  # settings are not chosen on what is judged
    (choice,) = (tmp_path / "out").glob("*decode-choice.json")
    (lossy,) = (tmp_path / "out").glob("*decode-lossy.json")
    tried = {each["method"]: each["tried"] for each in json.loads(lossy.read_text())["config"]["chosen_on"]}
    assert set(tried) == {*decoding.LOSSY, "eellm, trained exits"} and all(len(each) == 6 for each in tried.values())
    assert {"kangaroo", "n-grams"} == set(json.loads(choice.read_text())["tried"])  # all that can draft is tried, the fastest is judged
    assert "full depth" in capsys.readouterr().out and not any(str(tmp_path) in f.read_text() for f in (tmp_path / "out").glob("*.json"))


def test_every_family_is_measured_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two layers of width 64. A family whose model types are none of the list would go unmeasured."""
    small = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 99, "head_dim": 8}
    monkeypatch.setattr(kinds, "SHAPE", {**kinds.SHAPE, **{name: value for name, value in small.items() if name in kinds.SHAPE}})
    own = {name: {key: small.get(key, value) for key, value in each.items()} for name, each in kinds.OWN.items()}
    own["OPT"] |= {"ffn_dim": 96, "word_embed_proj_dim": 64}
    monkeypatch.setattr(kinds, "OWN", own)
    types = {kinds.made(kind).config.model_type for kind in kinds.OWN}
    loaded = [families.load(name) for name in families.names()]
    assert types == {kind for each in loaded if each.language is not None and each.language.cross is None for kind in each.model_types}
    summary: decoding.Summary = {}
    decoding.kinds_of(decoding.Wish(tokens=16, repeats=2), tmp_path, summary, lambda _: None)
    assert summary["decode/kinds_unequal"] == 0 and (summary["decode/least_over_generate"] or 0) > 0
    (written,) = (json.loads(file.read_text())["kinds"] for file in tmp_path.glob("*decode-kinds.json"))
    assert [each["kind"] for each in written] == list(kinds.OWN) and all(len(each["times_s"]["ours"]) == 6 for each in written)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_the_floor_of_a_step_is_every_product_of_the_model(case: str) -> None:
    """Llama: q, k, v, o, gate, up and down of each layer and the head; GPT-2: four turned maps of each layer and the head."""
    model = CASES[case][1]()[0].eval()
    config = model.config
    width, layers, words = config.hidden_size, config.num_hidden_layers, config.vocab_size
    if case == "llama":
        narrow, wide = width * config.num_key_value_heads // config.num_attention_heads, config.intermediate_size
        want = 7 * layers + 1, layers * (2 * width * width + 2 * width * narrow + 3 * width * wide) + width * words
    else:
        want = 4 * layers + 1, layers * 12 * width * width + width * words
    found = roofline.matrices(model)
    assert (len(found), sum(w.numel() for w in found)) == want
    made = roofline.measure(model, repeats=2, prompt=5)
    assert made["pass_over_one"]["1"] == 1 and made["floor_s"] > 0
    assert made["ceiling"] == pytest.approx(made["generate_s"] / made["floor_s"])
    assert made["reached"] == pytest.approx(made["ceiling"] * made["of_ceiling"])
    on = roofline.on_gpus(model, {"tokens_per_round": 2.0, "drafted": 30, "rounds": 10})
    assert [each["lossless_over_full"] for each in on] == [2.0, 2.0, 2.0]  # four tokens are multiplied faster than the weights are read
