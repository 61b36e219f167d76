"""Layers left out in training: chances and schedules by hand, and what a hooked model then computes."""

import math

import pytest
import torch
from tests.train.language.tiny import LAYERS, llama

from exitwise.train.language import noise

IDS = torch.arange(12).view(2, 6) * 3 + 3


def test_chances_rise_with_the_layer_as_the_paper_says() -> None:
    found = noise.dropout_rates(5, 0.1)
    assert found == pytest.approx([0.1 * (math.exp(layer * math.log(2) / 4) - 1) for layer in range(5)])
    assert found[0] == 0 and found[-1] == pytest.approx(0.1)
    half = noise.dropout_rates(5, 0.1, 50, 101)
    assert half == pytest.approx([rate * (math.sqrt(2) - 1) for rate in found])  # S = 2^(50/100) - 1


def test_schedules_are_nested_and_keep_bottom_and_top() -> None:
    """Six layers, 6 down to 3 over 32 positions, one at the bottom: the sets of the specification."""
    sets = [set(noise.scheduled_layers(t, 6, 6, 3, 32)) for t in range(-3, 40)]
    assert sets[0] == set(range(6)) and sets[-1] == {0, 4, 5} and {0, 3, 4, 5} in sets
    assert all(later <= before for before, later in zip(sets, sets[1:]))
    assert sum(len(s) for s in sets[3:35]) / 32 == pytest.approx(4.5, abs=0.1)  # the mean of the two ends, up to rounding


def test_a_row_that_leaves_a_layer_out_is_a_model_without_it() -> None:
    """Row 0 runs all layers, row 1 all but the second: each equals the model that has just those. Same operations, so exactly."""
    model = llama()
    keep = [torch.ones(2, 1, dtype=torch.bool) for _ in range(LAYERS)]
    keep[1] = torch.tensor([[True], [False]])
    with noise.left_out(model.model.layers, keep):
        mixed = model(IDS).logits
    full = model(IDS).logits
    model.model.layers = model.model.layers[:1] + model.model.layers[2:]
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    without = model(IDS).logits
    assert torch.equal(mixed[0], full[0]) and torch.equal(mixed[1], without[1]) and not torch.equal(full[1], without[1])


def test_nothing_is_rescaled_and_no_hook_is_left() -> None:
    model = llama()
    before = model(IDS).logits
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        noise.left_out(model.model.layers, [torch.zeros(2, 1, dtype=torch.bool)] * LAYERS),
    ):
        logits = model(IDS).logits
        assert torch.equal(logits, model.lm_head(model.model.norm(model.model.embed_tokens(IDS))))  # all left out: the embedding itself
        raise RuntimeError("on purpose")
    assert torch.equal(model(IDS).logits, before)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_drawn_rows_are_left_out_as_often_as_the_chance_says() -> None:
    """20,000 draws at 0.3: four standard errors are 0.013."""
    torch.manual_seed(0)
    kept = noise.kept_rows([0.0, 0.3], 20_000)
    assert bool(kept[0].all()) and kept[1].shape == (20_000, 1)
    assert float((~kept[1]).float().mean()) == pytest.approx(0.3, abs=0.013)


def test_masked_training_is_decoding_by_the_schedule() -> None:
    """The parallel form against one token at a time with a cache, in which a layer once dropped is never run again. Sums of another order
    in float32: 1e-4 on logits of size 10."""
    from transformers import DynamicCache

    model = llama()
    ids, prompt, (most, least, length) = torch.arange(10)[None] * 4 + 3, 4, (4, 2, 4)
    positions = torch.arange(10)[None] - (prompt - 1)
    with torch.no_grad(), noise.left_out(model.model.layers, noise.scheduled_masks(positions, LAYERS, most, least, length)):
        parallel = model(ids).logits
    cache, layers = DynamicCache(config=model.config), model.model.layers
    with torch.no_grad():
        for at in range(10):
            place = torch.tensor([[at]])
            h = model.model.embed_tokens(ids[:, at : at + 1])
            turn = model.model.rotary_emb(h, place)
            for number in noise.scheduled_layers(at - (prompt - 1), LAYERS, most, least, length):
                assert cache.layers[number].get_seq_length() == at if number < len(cache.layers) else at == 0
                h = layers[number](
                    h, position_embeddings=turn, position_ids=place, attention_mask=None, past_key_values=cache, use_cache=True
                )
            torch.testing.assert_close(model.lm_head(model.model.norm(h))[0, 0], parallel[0, at], rtol=0, atol=1e-4)
