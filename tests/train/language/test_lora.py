"""Low-rank updates: they alone learn, a stopped run goes on bit for bit, and what they become is an ordinary model."""

import sys
from typing import Any

import pytest
import torch
from tests.families.cases import made, makeup
from tests.train.language.tiny import LAYERS, WIDTH, batch, learner, llama, train_until
from transformers import AutoModelForCausalLM

from exitwise import families
from exitwise.cutting import cut
from exitwise.errors import KnobError
from exitwise.heads import Exits, Shape
from exitwise.train import Settings, train
from exitwise.train.exits import Learner
from exitwise.train.language import lora, noise, objectives, weights


@pytest.fixture
def installed() -> None:
    pytest.importorskip("peft", reason="low-rank updates are made by peft, which is not installed")


def updated(model: Any) -> tuple[Learner, Any]:
    """A learner whose low-rank updates alone are trained, as the command line makes it; and what is merged later."""
    torch.manual_seed(3)
    found = lora.with_lora(model, 2)
    owner = learner(model)
    lora.only_updates(model)
    return owner, found


def dropped() -> Any:
    """LayerSkip's objective: of them all the one that draws."""
    return objectives.layers_dropped(
        lambda step: weights.scaled(LAYERS, 0.2, weights.rotating(step, LAYERS, 2)), lambda step: noise.dropout_rates(LAYERS, 0.2)
    )


def test_only_the_updates_learn_and_the_base_is_as_it_was_until_they_are_merged(installed, tmp_path) -> None:
    model = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    owner, found = updated(model)
    learnt = {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(learnt) == 2 * 7 * LAYERS and all("lora_" in name for name in learnt)  # two factors for each of a layer's seven matrices
    dropped()(owner, batch())["loss"].backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == learnt
    model.zero_grad()
    start = float(dropped()(owner.eval(), batch())["loss"].detach())
    train(owner, batch, dropped(), Settings(tmp_path, steps=30, lr=2e-2, warmup=0))
    assert float(dropped()(owner.eval(), batch())["loss"].detach()) < start - 0.2
    wrapped = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if "lora_" not in name}
    assert wrapped.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in wrapped.items())
    after = lora.merged(found).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert after.keys() == before.keys() and moved == {name for name in before if "proj" in name}


@pytest.mark.parametrize("case", ["llama", "gpt2", "phi3", "gemma-2"])
def test_what_is_merged_says_what_the_updates_said_and_is_an_ordinary_model(case, installed, tmp_path) -> None:
    """The same products, added before or after: 1e-4 of logits of up to 10 in float32. What is written is loaded as ever, and cut."""
    model, _ = made(case)
    ids, plain = torch.arange(14)[None] * 7 % 47 + 3, makeup(model)
    with torch.no_grad():
        own = model(ids).logits
        found = lora.with_lora(model, 2)
        torch.manual_seed(5)
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.2)
        said = model(ids).logits
        ordinary = lora.merged(found)
        assert ordinary is model and float((said - own).abs().max()) > 0.1
        torch.testing.assert_close(model(ids).logits, said, atol=1e-4, rtol=1e-4)
        assert {name: kind for name, (kind, *_) in makeup(model).items()} == {name: kind for name, (kind, *_) in plain.items()}
        model.save_pretrained(tmp_path / "whole")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", attn_implementation=model.config._attn_implementation).eval()
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        cut(loaded, 2, tmp_path / "cut")
        short = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", attn_implementation=model.config._attn_implementation).eval()
        family = families.of(model)[1]
        owner = Learner(model, family, Exits(Shape(WIDTH, 0, LAYERS), heads=False), True)
        torch.testing.assert_close(short(ids).logits, owner.read(owner.walk({"input_ids": ids}).states[1]), atol=1e-5, rtol=1e-5)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(installed, tmp_path) -> None:
    def run(folder: str, stop: int | None = None) -> Any:
        owner, found = updated(llama())
        train_until(owner, dropped(), tmp_path / folder, stop, steps=8, lr=1e-2)
        return lora.merged(found).state_dict()

    whole = run("whole")
    run("parts", stop=5)
    parts = run("parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert any(not torch.equal(value, whole[name]) for name, value in llama().state_dict().items())


def test_without_peft_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # an import of it now fails as if it were not there
    with pytest.raises(KnobError, match=r"pip install 'exitwise\[lora\]'"):
        lora.with_lora(llama(), 2)


def test_a_rank_below_one_is_refused(installed) -> None:
    with pytest.raises(KnobError, match="Allowed: 1 and more"):
        lora.with_lora(llama(), 0)
