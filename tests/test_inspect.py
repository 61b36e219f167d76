"""What `inspect` finds in each family, the inputs it makes, and a self-test that can fail."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.families.cases import CASES, made, makeup, model_writes
from torch import nn

from exitwise import families
from exitwise.errors import InputError
from exitwise.inspect import check, example_inputs, inspect, render, require, saturation


@pytest.mark.parametrize("case", CASES)
def test_every_family_passes_the_self_test_on_made_up_and_on_given_inputs(case: str) -> None:
    model, inputs = made(case)
    before = makeup(model)
    writer = {"keys and values", "exact states"} if model_writes(model) else set()
    for given in (None, inputs):
        found = require(model, given)
        assert {c.name for c in found} == {"identity at full depth", "layer calls", "read-out", "restored"} | writer
    assert makeup(model) == before and not model.training


@pytest.mark.parametrize("case", CASES)
def test_the_report_says_what_is_there(case: str) -> None:
    model, _ = made(case)
    report = inspect(model)
    family = families.load(CASES[case][0])
    assert report.family == CASES[case][0] and report.readout
    assert report.parameters == sum(p.numel() for p in model.parameters())
    for stack, said in zip(family.stacks_of(model), report.stacks, strict=True):
        assert said.parameters == sum(p.numel() for n, p in model.named_parameters() if n.startswith(stack.path + "."))
        assert said.layers == len(stack.layers(model)) and f"1..{said.layers}" in said.leaves
    assert json.loads(json.dumps(report.to_dict()))["stacks"][0]["path"] == report.stacks[0].path


@pytest.mark.parametrize("case", CASES)
def test_saturation_is_the_mean_cosine_across_each_layer(case: str) -> None:
    model, inputs = made(case)
    profile = saturation(model, inputs)
    assert set(profile) == {s for stack in inspect(model).stacks for s in stack.streams}
    assert all(-1 <= v <= 1 for values in profile.values() for v in values)
    first = families.load(CASES[case][0]).stacks_of(model)[0]
    if len(first.streams) == 1 and "attention_mask" not in inputs:  # by hand, where no padding enters the mean
        pairs: list[Any] = []
        for layer in first.layers(model):
            layer.register_forward_hook(lambda _, args, out: pairs.append((args[0], out)))
        with torch.no_grad():
            model.generate(**inputs, max_new_tokens=1) if model_writes(model) else model(**inputs)
        want = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairs[: len(first.layers(model))]]
        assert profile[first.streams[0]] == pytest.approx(want, abs=1e-5)


def test_a_wrong_readout_fails() -> None:
    model, inputs = made("whisper")
    wrong = replace(families.load("whisper"), readout=lambda m, hidden: m.proj_out(hidden))  # without the final norm
    assert [c.name for c in check(model, inputs, wrong) if not c.passed] == ["read-out"]


def test_a_wrong_kind_fails() -> None:
    model, inputs = made("bart")
    family = families.load("bart")
    assert isinstance(family.stacks, tuple)
    wrong = replace(family, stacks=(family.stacks[0], replace(family.stacks[1], kind="encoder")))  # skipped layers would lack keys
    assert {c.figure.partition(": ")[2] for c in check(model, inputs, wrong) if "kind='decoder'" in c.figure and not c.passed}


def test_what_a_model_raises_is_the_outcome_of_the_part() -> None:
    model, inputs = made("bert")

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    hook = model.classifier.register_forward_pre_hook(fail)
    found = check(model, inputs)
    hook.remove()
    assert not any(c.passed for c in found) and found[0].figure == "RuntimeError: no"


def test_inputs_that_cannot_be_guessed_are_asked_for() -> None:
    with pytest.raises(InputError, match="Pass `inputs`"):
        example_inputs(nn.Linear(2, 2))


@pytest.mark.parametrize("case", ["florence2", "blip-question"])
def test_the_tables_fit_a_terminal_of_80_columns(case: str) -> None:
    model, inputs = made(case)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(inspect(model), saturation(model, inputs), check(model, inputs)))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text and "FAILED" not in text
    for stack in inspect(model).stacks:
        assert all(stream in text for stream in stack.streams)
