"""Florence-2's image and text walk one encoder apart, each token with the position that it had in the joint sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.families.cases import made, write
from torch import Tensor

from exitwise import Engine
from exitwise.errors import FamilyError
from exitwise.families.florence2 import spans

IMAGE = 5


def text_alone(model: Any, inputs: dict[str, Tensor], depth: int, first: int) -> Tensor:
    """The text's states after `depth` layers, no image in sight, with positions that begin at `first`: written out by hand."""
    encoder = model.model.language_model.encoder
    ids, mask = inputs["input_ids"][:, IMAGE:], inputs["attention_mask"][:, IMAGE:]
    places = encoder.embed_positions.weight[2 + first : 2 + first + ids.shape[1]]  # BART's table begins with two unused rows
    hidden = encoder.layernorm_embedding(model.model.language_model.shared(ids) + places)
    bias = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1]).masked_fill(mask[:, None, None] == 0, torch.finfo(torch.float32).min)
    for layer in encoder.layers[:depth]:
        hidden = layer(hidden, bias)
    return hidden


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_text_alone_keeps_its_original_positions(depth: int) -> None:
    model, inputs = made("florence2")
    engine = Engine(model, "static", text=depth, image=2)
    out = engine.run(**inputs)
    got, real = out.encoder_last_hidden_state[:, IMAGE:], inputs["attention_mask"][:, IMAGE:].bool()
    with torch.no_grad():
        want, wrong = text_alone(model, inputs, depth, IMAGE), text_alone(model, inputs, depth, 0)
    torch.testing.assert_close(got[real], want[real], atol=1e-5, rtol=1e-5)  # float32 sums over other shapes
    assert (got[real] - wrong[real]).abs().max() > 0.1
    assert out.trace.depth["text"].tolist() == [depth, depth] and out.trace.depth["image"].tolist() == [2, 2]


def test_the_image_alone_does_not_see_the_text() -> None:
    model, inputs = made("florence2")
    engine = Engine(model, "static", image=3)
    other = {**inputs, "input_ids": torch.where(inputs["input_ids"] == 98, 98, (inputs["input_ids"] + 11) % 90 + 5)}
    first, second = (engine.run(**i).encoder_last_hidden_state[:, :IMAGE] for i in (inputs, other))
    assert torch.equal(first, second)
    joint = engine.with_settings(decompose=False)
    first, second = (joint.run(**i).encoder_last_hidden_state[:, :IMAGE] for i in (inputs, other))
    assert not torch.allclose(first, second, atol=1e-2)


def test_generate_finds_the_streams_although_the_encoder_never_sees_the_words() -> None:
    model, inputs = made("florence2")
    engine = Engine(model, "static", image=2, text=3)
    for beams in (1, 3):
        trace = engine.generate(**inputs, max_new_tokens=4, num_beams=beams).trace
        assert trace.tokens["image"].tolist() == [IMAGE, IMAGE] and trace.tokens["text"].tolist() == [7, 4]
        assert trace.calls["model.language_model.encoder.layers"] == 5


def test_one_session_hears_each_batch_anew() -> None:
    model, inputs = made("florence2")
    with Engine(model, "static", image=2, text=3).attached() as session:
        write(model, inputs)
        words = {"input_ids": inputs["input_ids"][:, IMAGE:], "attention_mask": inputs["attention_mask"][:, IMAGE:]}
        write(model, words)
    assert session.trace.tokens["text"].tolist() == [7, 4, 7, 4]
    assert session.trace.depth["image"].tolist() == [2, 2]  # the second batch had no image


def test_streams_that_cannot_be_told_apart_are_refused() -> None:
    model, inputs = made("florence2")
    engine = Engine(model, "mue")
    left = {**inputs, "input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}
    with pytest.raises(FamilyError, match="Pad on the right"):
        engine.generate(**left, max_new_tokens=2)
    assert engine.with_settings(decompose=False).generate(**left, max_new_tokens=2).sequences is not None
    with pytest.raises(FamilyError, match="Pass `input_ids`"):
        spans(model, 12, {})
