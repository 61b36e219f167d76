"""ETR against the paper's arithmetic, MACs against products written down by hand."""

import pytest
import torch
from torch import nn

from exitwise.cost import count_macs, etr, etr_readings
from exitwise.trace import Trace


def trace(image, text, decoder, layers=6):
    rows = len(image)
    return Trace(
        depth={"image": torch.tensor(image), "text": torch.tensor(text), "decoder": torch.tensor(decoder)},
        layers=dict.fromkeys(("image", "text", "decoder"), layers),
        tokens={"image": torch.full((rows,), 900), "text": torch.full((rows,), 30)},
    )


def test_full_depth_saves_nothing():
    assert etr(trace([6], [6], [[6, 6]])) == 0.0


def test_ofa_tiny_as_a_share_of_base_is_a_third():
    """4 + 4 of 6 + 6 layers: Table 1's -33 %."""
    assert etr(trace([4], [4], [[4, 4]])) == pytest.approx(1 / 3)


def test_a_method_that_leaves_only_in_the_decoder_is_capped():
    """7 of 12 layers at least: 41.7 %."""
    assert etr(trace([6], [6], [[1, 1, 1]])) == pytest.approx(5 / 12)


def test_the_three_readings_by_hand():
    """Depths 2 and 6 of 6, decoder 2: (4 + 2)/12, (6 + 2)/12, and ((2*900 + 6*30)/930 + 2)/12 are left."""
    got = etr_readings(trace([2], [6], [[2, 2]]))
    assert got["mean"] == pytest.approx(0.5)
    assert got["max"] == pytest.approx(1 - 8 / 12)
    assert got["tokens"] == pytest.approx(1 - ((1800 + 180) / 930 + 2) / 12)


def test_rows_weigh_by_their_words():
    """A row of 3 words at depth 6 and one of 1 word at depth 2: the encoder's mean over words is (3*6 + 2)/4 = 5."""
    got = etr(trace([6, 2], [6, 2], [[6, 6, 6], [6, 0, 0]]))
    assert got == pytest.approx(1 - (5 + 6) / 12)


def test_an_encoder_alone_counts_its_own_layers():
    alone = Trace(depth={"text": torch.tensor([1, 3])}, layers={"text": 4}, tokens={"text": torch.tensor([5, 5])})
    assert etr(alone) == pytest.approx(0.5)


def test_an_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="mean, max, tokens"):
        etr(trace([6], [6], [[6]]), "median")


def test_macs_of_a_product_a_convolution_and_attention_by_hand():
    linear, conv = nn.Linear(8, 5), nn.Conv2d(3, 4, 3, padding=1)
    query = torch.randn(2, 4, 6, 16)
    with torch.no_grad(), count_macs() as counted:
        linear(torch.randn(7, 8))
        conv(torch.randn(1, 3, 10, 10))
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert counted.total == 7 * 8 * 5 + 100 * 4 * 27 + 2 * 4 * 6 * 6 * (16 + 16)


def test_macs_of_a_walk_are_those_of_the_layers_that_ran():
    """Two of four layers of each stream leave out exactly two layers' products."""
    from exitwise.engine import Engine
    from exitwise.families.ofa import tiny

    model, inputs = tiny()
    given = {**inputs, "decoder_input_ids": inputs["input_ids"]}
    totals = {}
    for depth in (4, 3, 2, 1):
        with count_macs(model, ("model.encoder", "lm_head")) as counted:
            Engine(model, "static", image=depth, text=depth, decoder=depth).run(**given)
        totals[depth] = counted.total
        assert counted.below["lm_head"] == 2 * 7 * 32 * 99
        assert counted.below["model.encoder"] < counted.total
    assert totals[4] - totals[3] == totals[3] - totals[2] == totals[2] - totals[1] > 0
    tokens, width, inner = 2 * 7, 32, 64
    self_side = 4 * width * width + 2 * width * inner
    attention = 2 * 2 * width * (6 * 6 + 7 * 7)
    encoder = (2 * (6 + 7)) * self_side + attention
    decoder = tokens * (self_side + 2 * width * width) + (2 * 13) * 2 * width * width + 2 * 2 * width * (7 * 7 + 7 * 13)
    assert totals[4] - totals[3] == encoder + decoder
