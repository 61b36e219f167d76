"""Writing, judging and learning from it: ids by hand, the loss by hand, and the model left as it was."""

from __future__ import annotations

import math

import pytest
import torch

from exitwise.errors import KnobError
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration
from exitwise.train.reward import rewarded, taught, write


def test_texts_are_taught_up_to_their_end() -> None:
    ids = torch.tensor([[7, 2, 1, 1], [8, 9, 2, 2], [5, 6, 7, 8], [2, 1, 1, 1]])
    given, labels = taught(ids, 0, 2, 1)
    assert labels.tolist() == [[7, 2, -100, -100], [8, 9, 2, -100], [5, 6, 7, 8], [2, -100, -100, -100]]
    assert given.tolist() == [[0, 7, 1, 1], [0, 8, 9, 1], [0, 5, 6, 7], [0, 1, 1, 1]]
    short, _ = taught(ids[:1], 0, 2, 1)
    assert short.tolist() == [[0, 7]]  # no column without a token


def test_the_loss_by_hand() -> None:
    """One image, three texts of one token, worth 1, 2, 6: advantages -3, -1.5, 4.5. The last layer gives the tokens the chances 1/2, 1/4,
    1/8; the first gives each 1/2."""
    chances = torch.tensor([1 / 2, 1 / 4, 1 / 8])
    last = torch.stack([chances, 1 - chances], -1).log()[:, None]
    first = torch.zeros(3, 1, 2)
    labels, worth = torch.zeros(3, 1, dtype=torch.long), torch.tensor([[1.0, 2.0, 6.0]])
    two = math.log(2)
    of_last = (-3.0 * two - 1.5 * 2 * two + 4.5 * 3 * two) / 3
    assert float(rewarded([first, last], lambda hidden: hidden, labels, worth)) == pytest.approx(of_last)
    both = rewarded([first, last], lambda hidden: hidden, labels, worth, weights="uniform")
    assert float(both) == pytest.approx((of_last + 0.0) / 2, abs=1e-6)  # the first layer's advantages cancel
    with pytest.raises(KnobError, match="two samples"):
        rewarded([last], lambda hidden: hidden, labels, torch.ones(3, 1))


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    torch.manual_seed(0)
    return OFAForConditionalGeneration(OFAConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, token_bucket_size=8, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0", dropout=0.5, decomposed=True,
    ))  # fmt: skip


def test_texts_follow_their_image_and_the_model_goes_on_training(model: OFAForConditionalGeneration) -> None:
    inputs = {"input_ids": torch.tensor([[0, 5, 2], [0, 6, 2]]), "image_features": torch.randn(2, 1, 1, 320)}
    torch.manual_seed(1)
    model.train()
    drawn = write(model, inputs, 4, 6)
    assert drawn.shape[0] == 8 and drawn.shape[1] <= 6 and model.training and not drawn.requires_grad
    assert len({tuple(row) for row in drawn[:4].tolist()}) > 1
    beams = write(model, inputs, 3, 6, "beam")
    alone = write(model, {name: value[1:] for name, value in inputs.items()}, 3, 6, "beam")
    width = min(beams.shape[1], alone.shape[1])
    assert torch.equal(beams[3:, :width], alone[:, :width])
    greedy = write(model.eval(), inputs, longest=6)
    assert greedy.shape[0] == 2 and not model.training
    cold = write(model, inputs, 2, 6, "sample", 1e-3)
    assert torch.equal(cold[0], cold[1]) and torch.equal(cold[0, : greedy.shape[1]], greedy[0])
    with pytest.raises(KnobError, match="search 'beams'"):
        write(model, inputs, 2, 6, "beams")  # type: ignore[arg-type]
