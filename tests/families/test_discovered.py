"""Models that no file describes: found by their structure, held to the self-test, refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exitwise import Engine, Family, Stack, families
from exitwise.errors import FamilyError
from exitwise.inspect import require
from exitwise.stack import discover


def marian() -> Any:
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=99, d_model=32, encoder_layers=3, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.3, pad_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    return MarianMTModel(config).eval()


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


class TwoInOne(nn.Module):
    """Two stacks whose loops are in one forward, so that both have the same owner."""

    def __init__(self) -> None:
        super().__init__()
        self.image_layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.text_layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for layer in self.image_layers:
            image = layer(image)
        for layer in self.text_layers:
            text = layer(text)
        return image.mean(1) + text.mean(1)


def test_a_model_of_no_family_is_discovered_and_passes() -> None:
    model = marian()
    name, family = families.of(model)
    assert name == "discovered"
    assert [(s.path, s.kind, s.streams) for s in family.stacks] == [
        ("model.encoder.layers", "encoder", ("text",)), ("model.decoder.layers", "decoder", ("decoder",))
    ]  # fmt: skip
    assert {c.name: c.passed for c in require(model)} == {
        "identity at full depth": True, "layer calls": True, "keys and values": True, "exact states": True, "restored": True
    }  # fmt: skip


def test_the_owner_of_a_discovered_stack_knows_which_tokens_are_real() -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64, initializer_range=0.3,
        max_position_embeddings=64,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    family = discover(model)  # as if no file described it
    (stack,) = family.stacks_of(model)
    assert (stack.path, stack.owner) == ("roberta.encoder.layer", "roberta")
    ids = torch.arange(40).view(4, 10) % 90 + 5
    mask = torch.ones_like(ids)
    ids[:, 6:], mask[:, 6:] = 1, 0
    engine = Engine(model, "mue", family=family)
    padded = engine.run(input_ids=ids, attention_mask=mask, record=True).trace.sureness["text"]
    bare = engine.run(input_ids=ids[:, :6], attention_mask=mask[:, :6], record=True).trace.sureness["text"]
    torch.testing.assert_close(padded, bare, atol=1e-5, rtol=1e-5)  # float32 sums over other shapes


def test_mt5_is_a_t5_that_does_not_scale() -> None:
    from transformers import MT5Config, MT5ForConditionalGeneration

    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=99,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = MT5ForConditionalGeneration(config).eval()
    assert families.of(model)[0] == "t5" and len(require(model)) == 6


def test_rotary_keys_pass_without_a_family() -> None:
    model = llama()
    found = require(model, family=discover(model))
    assert [c.name for c in found] == ["identity at full depth", "layer calls", "keys and values", "exact states", "restored"]


def test_two_stacks_of_one_owner() -> None:
    torch.manual_seed(0)
    model = TwoInOne().eval()
    inputs = {"image": torch.randn(2, 3, 8), "text": torch.randn(2, 5, 8)}
    before = type(model)
    out = Engine(model, "static", image=1, text=2).run(**inputs)
    want = model.image_layers[0](inputs["image"]).mean(1) + model.text_layers[1](model.text_layers[0](inputs["text"])).mean(1)
    assert torch.equal(out, want)
    assert out.trace.calls == {"image_layers": 1, "text_layers": 2}
    assert type(model) is before and "_exitwise" not in model.__dict__


def test_an_owner_that_does_not_call_its_layers_fails_the_test() -> None:
    model = TwoInOne().eval()
    model.add_module("spare_layers", nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2)))
    inputs = {"image": torch.randn(2, 3, 8), "text": torch.randn(2, 5, 8)}
    with pytest.raises(FamilyError, match="no layer of spare_layers was walked"):
        require(model, inputs)


class Apart(TwoInOne):
    """Its layers are not run one after the other: each reads the input, and their outputs are added."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        text = torch.stack([layer(text) for layer in self.text_layers]).sum(0)
        return self.image_layers[2](self.image_layers[1](self.image_layers[0](image))).mean(1) + text.mean(1)


def test_an_engine_holds_what_was_discovered_to_the_first_inputs() -> None:
    """A structure that is not how the model runs is refused before anything is answered, and the model is left whole."""
    torch.manual_seed(0)
    inputs = {"image": torch.randn(2, 3, 8), "text": torch.randn(2, 5, 8)}
    idle = TwoInOne().eval()
    idle.add_module("spare_layers", nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2)))
    with pytest.raises(FamilyError, match="no layer of spare_layers was walked.*adding-a-family"):
        Engine(idle, "static", image=1).run(**inputs)
    model = Apart().eval()
    with pytest.raises(FamilyError, match="at full depth its output is another.*adding-a-family"):
        Engine(model, "static", image=1).run(**inputs)
    assert type(model) is Apart and torch.equal(model(**inputs), Apart.forward(model, **inputs))


def test_the_proof_of_a_discovered_model_leaves_the_callers_cache_and_streamer_alone() -> None:
    """Each would see every token twice if the proof ran with it; a least length must not upset its short run."""
    from transformers import DynamicCache, EncoderDecoderCache

    model, ids = marian(), torch.arange(5, 12)[None]
    told: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            told.append(value.numel())

        def end(self) -> None: ...

    out = Engine(model, "never").generate(input_ids=ids, min_new_tokens=5, max_new_tokens=5, num_beams=1, streamer=Streamer())
    assert sum(told) == out.sequences.shape[1]
    assert torch.equal(out.sequences, model.generate(input_ids=ids, min_new_tokens=5, max_new_tokens=5, num_beams=1))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    Engine(model, "never").run(input_ids=ids, decoder_input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 3


def test_one_layer_in_many_places_is_refused() -> None:
    model = TwoInOne().eval()
    model.text_layers = nn.ModuleList([model.text_layers[0]] * 4)
    family = Family((), (Stack("text_layers", "encoder", ("text",)),))
    with pytest.raises(FamilyError, match="one and the same module"):
        Engine(model, "never", family)


def test_a_model_without_stacks_is_refused_with_a_way_out() -> None:
    with pytest.raises(FamilyError, match="Write a family in code"):
        families.of(nn.Linear(2, 2))
