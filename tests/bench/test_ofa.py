"""What is promised of OFA is measured as said: parts of a run add up, loads are of fresh processes, the largest deviation is taken."""

import importlib
import sys

import pytest
import torch
from tests.models import ofa_files

from exitwise.bench import __main__ as bench
from exitwise.bench import loaded, ofa, record, speed
from exitwise.errors import InputError
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration


@pytest.fixture(scope="module")
def small():
    """OFA-Base's depths on a grid of 2 x 3 cells of pixels."""
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=5100, d_model=16, encoder_layers=6, decoder_layers=6, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, image_bucket_size=4, token_bucket_size=32, max_position_embeddings=64,
        stem="efficientnet-lite0", decomposed=True, dropout=0.0, image_grids=[[2, 3]],
    )  # fmt: skip
    model = OFAForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model


def test_the_speed_is_a_ratio_of_turns_with_a_profile_of_both(small):
    found = ofa.speedup(repeats=2, tokens=3, model=small)
    assert all(len(times) == 2 for times in found["times_s"].values()) and set(found["times_s"]) == {"full", "exits", "ideal"}
    assert found["speedup"] == found["median_s"]["full"] / found["median_s"]["exits"]
    for name, parts in found["profile"].items():
        assert parts["stem"] > 0 and parts["decoder"] > 0 and parts["head"] > 0
        assert (parts["encoder both"] > 0) == (name == "full") and (parts["encoder image"] > 0) == (parts["encoder text"] > 0) == (
            name != "full"
        )


def test_the_profile_gives_each_part_its_own_time(small, monkeypatch):
    """A clock that ticks once for each look at it: every call of a part takes one tick. Calls are counted by hand: 2/6/2, 3 tokens."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(ofa.time, "perf_counter", lambda: float(next(ticks)))
    engine, given = speed.exits(small, [ofa.DEPTHS]), ofa.pictured(small)
    parts = ofa.profile(small, given, lambda: engine.generate(**given, max_new_tokens=3, do_sample=False), repeats=1)
    assert {part: parts[part] for part in ofa.PARTS} == {
        "stem": 1, "encoder image": 2, "encoder text": 6, "encoder both": 0, "decoder": 6, "head": 3,
    }  # fmt: skip
    assert parts["all"] == parts["rest"] + 18 and not any(m._forward_hooks for m in small.modules())


def test_a_load_counts_what_the_file_takes(tmp_path):
    """In this process: weights that are copied to another precision need their own memory, and every one is read."""
    file = ofa_files.write_fairseq(tmp_path / "small.pt", ofa_files.weights(ofa_files.SMALL))
    found = loaded.load(str(file), "float32")
    assert found["file_bytes"] == file.stat().st_size and found["ratio"] == found["peak_bytes"] / found["file_bytes"]
    assert found["read"] != 0 and found["seconds"] >= found["load_seconds"] > 0


def test_peak_is_of_this_process_and_grows_with_what_is_held():
    before = loaded.peak()
    held = bytearray(200 * 2**20)
    assert loaded.peak() - before > 0 and len(held) and loaded.peak() >= (loaded.status("VmRSS") or 0)


def test_each_load_has_a_process_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setitem(ofa_files.SIZES, "small", ofa_files.SMALL)
    monkeypatch.setattr(ofa, "PRECISIONS", {"float32": ("float32",)})
    found = ofa.loading("small", tmp_path)
    assert set(found["loads"]) == {"float32 as float32"} and found["load_memory_ratio"] == found["loads"]["float32 as float32"]["ratio"]
    assert 0.3 < found["load_memory_ratio"] < 30 and not list(tmp_path.iterdir())


def test_the_largest_deviation_is_of_a_part_not_of_the_whole(monkeypatch):
    parts = importlib.import_module("tests.models.ofa_parts")
    told = {256: {"stem": 1e-7, "head": 3e-6, "whole": 9e-5}, 512: {"stem": 2e-7, "head": 1e-6, "whole": 2e-5}}
    monkeypatch.setattr(parts, "deviations", lambda size, folder: told[size.width])
    found = ofa.deviations(("tiny", "medium"))
    assert (found["parts_max_error"], found["whole_max_error"]) == (3e-6, 9e-5)


def test_outside_the_source_tree_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tests.models.ofa_files", None)
    with pytest.raises(InputError, match="Run from the folder of the source tree"):
        ofa.loading()


def test_a_promise_is_a_run_and_a_key_of_the_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(ofa, "loading", lambda: {"load_memory_ratio": 1.1, "load_seconds": 2.0})
    summary = {}
    bench.about_ofa(tmp_path, summary, 1)["ofa-load"]()
    assert summary == {"ofa/load_memory_ratio": 1.1} and len(list(tmp_path.glob("*-ofa-load_memory_ratio.json"))) == 1


def test_a_figure_that_another_bench_wrote_meanwhile_stays(tmp_path, monkeypatch):
    """The first step gives a; another process writes a anew during the second, which gives b: both stand, and a is the newer one."""

    def steps(out, summary, *_):
        def second():
            record.summarise(out, {"a": 2.0})
            summary["b"] = 3.0

        return {"first": lambda: summary.update(a=1.0), "second": second}

    monkeypatch.setattr(bench, "steps", steps)
    monkeypatch.setattr(sys, "argv", ["bench", "--out", str(tmp_path), "--only", "first,second"])
    assert bench.main() == 0
    assert record.summarise(tmp_path, {}) == {"a": 2.0, "b": 3.0}
