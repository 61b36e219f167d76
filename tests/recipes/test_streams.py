"""The training forward, which shares images and keeps rows apart, is the model's own forward; and the batches ask the right places."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "shipped"))
data = pytest.importorskip("data")
quick = pytest.importorskip("quick")
streams = pytest.importorskip("streams")

from exitwise import Engine  # noqa: E402
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration  # noqa: E402
from exitwise.train import layerwise  # noqa: E402


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    """A small random decomposed model whose position tables and head scales are not at their neutral start."""
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32, token_bucket_size=16, image_bucket_size=8,
        stem="efficientnet-lite0", decomposed=True, image_grids=[[2, 3]],
    )  # fmt: skip
    built = OFAForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "stem" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def answer_batch() -> object:
    """Two images with three texts each, of different lengths."""
    torch.manual_seed(1)
    pairs = [(torch.randint(5, 60, (length,)).tolist(), 7 + length) for length in (3, 6, 4, 5, 2, 6)]
    return data.answer_batch([torch.randn(2, 3, 320).numpy() for _ in range(2)], pairs)


def caption_batch() -> object:
    """Two images with three captions each, one source text."""
    torch.manual_seed(2)
    rows = [torch.randint(5, 60, (length,)).tolist() for length in (4, 2, 6, 3, 5, 5)]
    return streams.Batch(
        "caption",
        torch.randn(2, 2, 3, 320),
        torch.tensor([[0, 9, 8, 2]]),
        data.padded([[0, *row] for row in rows], 1),
        data.padded([[*row, 2] for row in rows], -100),
    )


@pytest.mark.parametrize("make", [answer_batch, caption_batch])
def test_shared_streams_are_the_models_own_forward(model: OFAForConditionalGeneration, make: object) -> None:
    batch = make()  # type: ignore[operator]
    rows = len(batch.decoder_input)
    with torch.no_grad():
        mine = streams.decoder_states(model, batch)
        source = batch.source.expand(rows, -1)
        theirs = model(
            input_ids=source,
            attention_mask=(source != 1).long(),
            image_features=batch.features.repeat_interleave(3, 0),
            decoder_input_ids=batch.decoder_input,
            output_hidden_states=True,
            use_cache=False,
        ).decoder_hidden_states[1:]
    asked = batch.labels != -100
    assert len(mine) == len(theirs) == 3
    for left, right in zip(mine, theirs, strict=True):
        # Sums run in another order over keys that are masked here and absent there: float32 rounding, states of size about 3.
        assert torch.allclose(left[asked], right[asked], atol=2e-5)
    assert mine[-1][asked].std() > 0.1


def test_rows_of_one_image_do_not_see_each_other(model: OFAForConditionalGeneration) -> None:
    batch = answer_batch()
    source = batch.source.clone()  # type: ignore[attr-defined]
    source[1, 1:4] = torch.tensor([11, 12, 13])
    changed = streams.Batch(batch.kind, batch.features, source, batch.decoder_input, batch.labels)  # type: ignore[attr-defined]
    with torch.no_grad():
        before, after = streams.decoder_states(model, batch)[-1], streams.decoder_states(model, changed)[-1]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, True, True, True]


def test_answers_are_asked_for_the_answer_and_the_end_only() -> None:
    batch = data.answer_batch([torch.zeros(2, 3, 320).numpy()], [([5, 6, 7], 40), ([8], 41)])
    assert batch.decoder_input.tolist() == [[0, 5, 6, 7, 40], [0, 8, 41, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, -100, 40, 2], [-100, 41, 2, -100, -100]]
    assert batch.source.tolist() == [[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]]


def test_the_gradient_of_the_layerwise_loss_reaches_image_and_text(model: OFAForConditionalGeneration) -> None:
    batch = answer_batch()
    model.zero_grad()
    layerwise(streams.decoder_states(model, batch), model.readout, batch.labels).backward()  # type: ignore[attr-defined]
    encoder = model.model.encoder
    for parameter in (encoder.image_proj.weight, encoder.layers[0].fc1.weight, encoder.image_rel_pos[0].weight):
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_the_quick_functions_are_what_they_replace() -> None:
    torch.manual_seed(0)
    query, key, value, bias = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8), torch.randn(1, 4, 5, 7)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.25)
    assert torch.allclose(quick.attention(query, key, value, bias, 0.0, 0.25), expected, atol=1e-6)
    ones = torch.ones(400, 500)
    dropped = quick.dropout(ones, 0.1)
    share = int(0.1 * 256) / 256
    assert abs(float((dropped == 0).float().mean()) - share) < 0.004  # 200,000 draws: a spread of 0.0007
    assert abs(float(dropped.mean()) - 1) < 0.004
    assert quick.dropout(ones, 0.1, training=False) is ones


def test_captions_lose_punctuation_and_case() -> None:
    assert data.plain_caption("A dog's T-shirt , isn't it ?") == "a dogs t shirt isnt it"
    assert data.plain_sentence("There is a Tower. ") == "there is a tower"


def test_streams_that_leave_the_encoder_early_in_training_are_those_of_a_run_at_these_depths(model: OFAForConditionalGeneration) -> None:
    """The last decoder layer's answer for static depths of an engine; the encoder is whole again afterwards."""
    batch = answer_batch()
    cut = dataclasses.replace(batch, depths=(1, 2))  # type: ignore[type-var]
    layers = list(model.model.encoder.layers)
    trained = streams.decoder_states(model, cut)[-1]
    assert list(model.model.encoder.layers) == layers
    run = Engine(model, "static", image=1, text=2, decoder=3).run(
        input_ids=batch.source, attention_mask=(batch.source != 1).long(),  # type: ignore[attr-defined]
        image_features=batch.features.repeat_interleave(3, 0), decoder_input_ids=batch.decoder_input, use_cache=False,  # type: ignore[attr-defined]
    )  # fmt: skip
    asked = batch.labels != -100  # type: ignore[attr-defined]
    torch.testing.assert_close(model.readout(trained)[asked], run.logits[asked], rtol=1e-4, atol=1e-4)  # sums over other batches
    whole = streams.decoder_states(model, batch)[-1]
    assert not torch.allclose(whole[asked], trained[asked], atol=1e-2)
