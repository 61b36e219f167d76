"""`run` and `bench --methods` on tiny language models: what is said, streamed, coloured and counted, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.speakers import saved
from tests.test_cli import call, parsed

from exitwise import Engine
from exitwise.cli import speaking, streaming
from exitwise.cost import count_macs
from exitwise.lm.adapter import Adapter, AdapterConfig, save_adapter
from exitwise.pretrained import Speaker, language_model

PROMPT = "the quick brown fox"
EARLY = ("--method", "soft", "--set", "decoder=0.1", "--set", "minimum=1", "--set", "every=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("text") / "model")[1]


@pytest.fixture(scope="module")
def speaker(folder: Path) -> Speaker:
    return language_model(folder)


def test_the_text_and_its_figures_are_those_of_generate(folder: Path, speaker: Speaker) -> None:
    engine = Engine(speaker.model, "soft", decoder=0.1, minimum=1, every=1)
    given = {**speaker.prompts([PROMPT]), "max_new_tokens": 12, "do_sample": False}
    engine.generate(**given)  # the first run of a model tries once whether its layers have the lean form, which is not of the text's price
    with count_macs() as counted:
        want = engine.generate(**given)
    said = parsed("run", folder, "--prompt", PROMPT, "--max-new-tokens", 12, *EARLY)
    assert [token["depth"] for token in said["tokens"]] == want.depth[0].tolist() and len(set(want.depth[0].tolist())) > 1
    assert said["answer"] == speaker.text(want.sequences[0, -12:]) == "".join(token["text"] for token in said["tokens"])
    assert said["calls"] == sum(want.trace.calls.values()) and said["head_calls"] == want.trace.head_calls
    assert said["macs"] == counted.total and said["drafts"] is None and said["stopped"] is False
    assert said["new_tokens"] == 12 and said["tokens_per_second"] == pytest.approx(12 / said["seconds"])


def test_a_draft_that_stood_is_shown_at_the_depth_that_drafted_it(folder: Path, speaker: Speaker) -> None:
    """Lookup in a text that repeats itself gives drafts that stand, whatever the model."""
    how = ("--method", "layerskip", "--set", "depth=3", "--set", "lookup=1", "--max-new-tokens", 40)
    said = parsed("run", folder, "--prompt", PROMPT, *how)
    want = speaker.model.generate(**speaker.prompts([PROMPT]), max_new_tokens=40, do_sample=False)
    assert said["answer"] == speaker.text(want[0, -said["new_tokens"] :])
    assert sum(token["drafted"] for token in said["tokens"]) == said["drafts"]["accepted"] > 0
    assert {(token["depth"], token["drafted"]) for token in said["tokens"]} == {(3, True), (4, False)}


def test_tokens_are_coloured_by_depth_and_the_legend_says_how(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = call("run", folder, "--prompt", PROMPT, "--max-new-tokens", 12, "--no-macs", *EARLY).stdout
    first, rest = out.split("\n", 1)
    assert "\x1b[1;32m" in first and "\x1b[31m" in first  # green early, red late
    assert "depth: " in rest and "4..4" in rest and "MACs" not in rest


def test_pieces_come_one_by_one_and_letters_whole(speaker: Speaker) -> None:
    words = streaming._Words(lambda ids: bytes(ids).decode(errors="replace"))
    assert [words(byte) for byte in "aé€".encode()] == ["a", "", "é", "", "", "€"]
    seen: list[str] = []
    given = {**speaker.prompts([PROMPT]), "max_new_tokens": 4, "do_sample": False}
    said = streaming.stream(Engine(speaker.model, "never"), speaker.text, given, lambda piece: seen.append(piece.text))
    assert len(seen) == 4 and "".join(seen) == said.text


def test_drawing_is_asked_for_by_any_of_its_options_and_repeats(folder: Path) -> None:
    def said(*more: Any) -> str:
        return str(parsed("run", folder, "--prompt", PROMPT, "--max-new-tokens", 12, "--no-macs", *more)["answer"])

    greedy = said()
    assert said("--temperature", 1.5, "--seed", 3) == said("--temperature", 1.5, "--seed", 3) != greedy
    assert said("--top-k", 1) == greedy and said("--top-p", 0.0001) == greedy
    assert said("--repetition-penalty", 9.0) != greedy
    letter = greedy.strip()[3]
    assert said("--stop", letter) == greedy[: greedy.index(letter) + 1]


def test_an_interrupt_keeps_the_text(folder: Path, speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    before = speaker.model.state_dict()
    pieces: Iterator[int] = iter(range(100))

    def words(self: Any, token: int) -> str:
        if next(pieces) == 3:
            raise KeyboardInterrupt
        return "x"

    monkeypatch.setattr(streaming._Words, "__call__", words)
    result = call("run", folder, "--prompt", PROMPT, "--max-new-tokens", 12, "--json")
    said = json.loads(result.stdout)
    assert said["answer"] == "xxx" and said["stopped"] is True and said["macs"] is None and "Interrupted" in result.stderr
    assert all(torch.equal(value, before[name]) for name, value in speaker.model.state_dict().items())


def test_the_page_shades_as_many_cells_as_layers_ran(folder: Path, tmp_path: Path) -> None:
    said = parsed("run", folder, "--prompt", "a <b> & c", "--max-new-tokens", 12, "--html", tmp_path / "in" / "page.html", *EARLY)
    page = (tmp_path / "in" / "page.html").read_text()
    assert page.count('class="on"') == sum(token["depth"] for token in said["tokens"])
    assert page.count('class="off"') == sum(4 - token["depth"] for token in said["tokens"]) > 0
    assert "a &lt;b&gt; &amp; c" in page and "<script" not in page and "http" not in page
    (tmp_path / "file").write_text("")
    assert (
        "cannot be written" in call("run", folder, "--prompt", "a", "--max-new-tokens", 2, "--html", tmp_path / "file" / "x", code=2).stderr
    )


def test_a_chat_template_is_used_unless_it_is_not_wanted(tmp_path: Path) -> None:
    _, place = saved(tmp_path / "chatty", chat=True)
    how = ("--prompt", "a b c", "--max-new-tokens", 2, "--no-macs")
    assert parsed("run", place, *how)["prompt_tokens"] > parsed("run", place, *how, "--raw")["prompt_tokens"]


@pytest.mark.parametrize(
    "given, says",
    [
        (("--prompt", " "), "no prompt"),
        ((), "no prompt"),
        (("--prompt", "a", "--image", "x.png"), "--image is not for a language model"),
        (("--prompt", "a", "--candidates", "a,b"), "--candidates is not for a language model"),
        (("--prompt", "a", "--beams", 4), "--beams is not for a language model"),
        (("--prompt", "a", "--temperature", 0), "--temperature 0 must be above 0"),
        (("--prompt", "a", "--top-p", 2), "at most 1"),
        (("--prompt", "a", "--max-new-tokens", 4000), "more than the"),
        (("--prompt", "a", "--adapter", "nowhere"), "is not there"),
        (("--prompt", "a", "--adapter", "nowhere", "--method", "soft"), "--adapter is for --method kangaroo alone"),
        (("--prompt", "a", "--method", "kangaroo"), "needs trained exits"),
        (("--prompt", "a", "--method", "layerskip", "--set", "depth=9"), "leaves no layer to verify"),
    ],
)
def test_what_cannot_be_used_is_said(folder: Path, given: tuple[Any, ...], says: str) -> None:
    result = call("run", folder, *given, code=2)
    assert says in result.stderr and not result.stdout


def test_an_adapter_drafts(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_adapter(Adapter(AdapterConfig(32, 4, 4, depth=2)), tmp_path)
    how = ("--prompt", PROMPT, "--max-new-tokens", 8, "--no-macs")
    said = parsed("run", folder, *how, "--adapter", tmp_path, "--set", "sure=0")
    assert said["method"] == "kangaroo" and said["drafts"]["drafted"] > 0 and said["answer"] == parsed("run", folder, *how)["answer"]


def test_options_of_language_models_are_refused_for_others() -> None:
    assert "--temperature, --no-macs is for language models" in call("run", "--temperature", 0.5, "--no-macs", code=2).stderr
    assert speaking.speaks("shipped") is False


def test_bench_compares_methods_on_prompts(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in (PROMPT, "how many apples")) + "\nnot json\n")
    how = ("--data", file, "--tokens", 6, "--out", tmp_path / "out", "--set", "layerskip.depth=2")
    result = call("bench", folder, "--methods", "layerskip,kangaroo", *how, "--skip-bad")
    assert "layerskip" in result.stdout and "2/2" in result.stdout and "[IQR]" in result.stdout
    assert "not compared: kangaroo" in result.stdout and "left out: prompts.jsonl:3" in result.stderr
    made = json.loads(next((tmp_path / "out").glob("*-continue.json")).read_text())
    keys = [row["key"] for row in made["decode"]]
    assert keys[:3] == ["generate", "never", "layerskip"] and "assistant_early_exit" in keys
    assert all(row["equal"] == 2 for row in made["decode"]) and made["decode"][2]["settings"]["depth"] == 2


@pytest.mark.parametrize(
    "given, says",
    [
        (("--methods", "layerskip", "--set", "depth=2"), "NAME.KNOB=VALUE"),
        (("--methods", "layerskip", "--set", "soft.decoder=0.5"), "--set names soft"),
        (("--methods", "layerskp"), "layerskip"),
        (("--methods", "layerskip", "--exits", "nowhere"), "nowhere"),
        ((), "The task is not said"),
    ],
)
def test_bench_says_what_cannot_be_compared(folder: Path, tmp_path: Path, given: tuple[str, ...], says: str) -> None:
    (tmp_path / "prompts.txt").write_text("a b c\n")
    assert says in call("bench", folder, "--data", tmp_path / "prompts.txt", "--out", tmp_path, *given, code=2).stderr


def test_bench_asks_another_model_for_its_task(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a b c\n")
    assert "--task" in call("bench", "shipped", "--methods", "layerskip", "--data", tmp_path / "prompts.txt", code=2).stderr
