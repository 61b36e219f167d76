"""OFA's arithmetic against a slow one in NumPy float64, written from the specification and sharing no code with the model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from exitwise.models.ofa.encoder import LazyBias
from exitwise.models.ofa.layers import fold_bias
from exitwise.models.ofa.positions import image_buckets, image_positions, token_buckets

TOLERANCE = 1e-5  # float32 against float64, states of size 1 to 10


def weights(module: Any) -> dict[str, Any]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def linear(w: dict[str, Any], name: str, x: Any) -> Any:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: dict[str, Any], name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Any) -> Any:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(w: dict[str, Any], name: str, queries: Any, keys: Any, bias: Any, heads: int) -> Any:
    """One row, one head, one query at a time: softmax((q . k) / sqrt(2 head_dim) + bias) v, scaled by c_attn."""
    size = queries.shape[-1] // heads
    q, k, v = linear(w, f"{name}.q_proj", queries), linear(w, f"{name}.k_proj", keys), linear(w, f"{name}.v_proj", keys)
    out = np.zeros_like(queries)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(queries)):
            scores = np.array([q[t, part] @ k[s, part] / math.sqrt(2 * size) + bias[head, t, s] for s in range(len(keys))])
            chances = np.exp(scores - scores.max())
            out[t, part] = (chances / chances.sum()) @ v[:, part] * w[f"{name}.c_attn"][head]
    return linear(w, f"{name}.out_proj", out)


def feed_forward(w: dict[str, Any], x: Any) -> Any:
    inner = gelu(linear(w, "fc1", norm(w, "final_layer_norm", x)))
    return x + linear(w, "fc2", norm(w, "ffn_layer_norm", inner))


def encoder_layer(w: dict[str, Any], x: Any, bias: Any, heads: int) -> Any:
    y = norm(w, "self_attn_layer_norm", x)
    x = x + norm(w, "self_attn_mid_layer_norm", attend(w, "self_attn", y, y, bias, heads))
    return feed_forward(w, x)


def decoder_layer(w: dict[str, Any], x: Any, bias: Any, states: Any, cross: Any, heads: int) -> Any:
    y = norm(w, "self_attn_layer_norm", x)
    x = x + norm(w, "self_attn_mid_layer_norm", attend(w, "self_attn", y, y, bias, heads))
    y = norm(w, "cross_attn_layer_norm", x)
    x = x + norm(w, "cross_attn_mid_layer_norm", attend(w, "cross_attn", y, states, cross, heads))
    return feed_forward(w, x)


def position_scores(w: dict[str, Any], name: str, queries: Any, keys: Any, heads: int) -> Any:
    size = queries.shape[-1] // heads
    q, k = linear(w, f"{name}.q_linear", queries), linear(w, f"{name}.k_linear", keys)
    parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
    return np.stack([q[:, part] @ k[:, part].T for part in parts]) / math.sqrt(2 * size)


def bucket(distance: int, buckets: int, longest: int) -> int:
    middle = buckets // 2
    if abs(distance) > middle:
        share = math.log(abs(distance) / middle) / math.log((longest - 1) / middle)
        distance = int(math.copysign(math.ceil(share * (middle - 1) - 1e-9) + middle, distance))
    return distance + buckets - 1


def encoder_bias(model: Any, rows: int, columns: int, length: int, readable: int, layer: int) -> Any:
    """Image of rows x columns cells, text of `length` tokens of which `readable` are no pads."""
    config, w = model.config, weights(model.model.encoder)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    image = norm(w, "image_pos_ln", np.stack([w["embed_image_positions.weight"][r * config.image_bucket_size + c] for r, c in cells]))
    text = norm(w, "pos_ln", w["embed_positions.weight"][:length])
    places = np.concatenate([image, text])
    bias = position_scores(w, "position_scores", places, places, config.encoder_attention_heads)
    n, size = len(cells), config.image_bucket_size
    for a, (r, c) in enumerate(cells):
        for b, (r2, c2) in enumerate(cells):
            bias[:, a, b] += w[f"image_rel_pos.{layer}.weight"][(r2 - r + size - 1) * (2 * size - 1) + c2 - c + size - 1]
    for a in range(length):
        for b in range(length):
            where = bucket(b - a, config.token_bucket_size, config.max_position_embeddings)
            bias[:, n + a, n + b] += w[f"token_rel_pos.{layer}.weight"][where]
    bias[:, :, n + readable :] = -np.inf
    if config.decomposed:
        bias[:, :n, n:] = bias[:, n:, :n] = -np.inf
    return bias


def test_text_buckets_by_hand() -> None:
    """8 buckets, longest 80: up to 4 its own; 5: ceil(3 ln(5/4) / ln(79/4)) + 4 = 5; 20: ceil(1.62) + 4 = 6; 79: 7."""
    where = torch.tensor([0, 1, 4, 5, 20, 79])
    found = token_buckets(where[:1], where, 8, 80)[0] - 7
    assert found.tolist() == [0, 1, 4, 5, 6, 7]
    assert (token_buckets(where, where[:1], 8, 80)[:, 0] - 7).tolist() == [0, -1, -4, -5, -6, -7]


def test_text_buckets_stay_inside_the_table() -> None:
    for buckets, longest in ((256, 1024), (8, 80), (256, 64), (8, 5)):
        where = torch.arange(longest)
        found = token_buckets(where, where, buckets, longest)
        assert int(found.min()) >= 0 and int(found.max()) <= 2 * buckets - 2
        assert found[0, 0] == buckets - 1


def test_image_buckets_tell_every_offset_apart() -> None:
    row, column = image_positions(3, 4, torch.device("cpu"))
    found = image_buckets(row, column, 6)
    offsets = {(int(row[b] - row[a]), int(column[b] - column[a])): int(found[a, b]) for a in range(12) for b in range(12)}
    assert len(set(offsets.values())) == len(offsets) == 5 * 7
    assert offsets[0, 0] == 5 * 11 + 5


@pytest.mark.parametrize("decomposed", [False, True])
def test_encoder_bias_and_layer_equal_the_slow_ones(tiny_ofa: Any, ofa_inputs: Any, decomposed: bool) -> None:
    model, inputs = tiny_ofa(decomposed=decomposed), ofa_inputs()
    encoder = model.model.encoder
    with torch.no_grad():
        embedded = encoder.embed(**inputs)
        for index, readable in ((0, 7), (2, 4)):
            bias = encoder.layer_bias(index, embedded)
            row = 0 if readable == 7 else 1
            slow = encoder_bias(model, 2, 3, 7, readable, index)
            open_ = np.isfinite(slow)
            fast = bias[row].double().numpy()
            assert np.abs(fast - slow)[open_].max() < TOLERANCE
            assert (fast[~open_] < -1e30).all() and (~open_).any() == (decomposed or readable < 7)
            out = encoder.layers[index](embedded.hidden, bias)
            expected = encoder_layer(weights(encoder.layers[index]), embedded.hidden[row].double().numpy(), slow, 4)
            assert np.abs(out[row].double().numpy() - expected).max() < TOLERANCE * 5  # sums of 48 terms of size 10


@torch.no_grad()
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_bias_cut_to_a_stream_or_to_rows_is_that_part_of_the_whole(tiny_ofa: Any, ofa_inputs: Any, decomposed: bool) -> None:
    encoder = tiny_ofa(decomposed=decomposed).model.encoder
    embedded = encoder.embed(**ofa_inputs(rows=3))
    for layer in range(3):
        whole, lazy = encoder.layer_bias(layer, embedded), LazyBias(encoder, embedded, layer)
        assert whole.shape == (3, 4, 13, 13) and torch.equal(lazy.finished(), whole)
        for start, stop in ((0, 6), (6, 13)):
            part = lazy.cut_tokens((start, stop))
            expected = whole[:, :, start:stop, start:stop]
            assert torch.allclose(part.finished().expand_as(expected), expected, atol=1e-6)  # smaller matrices, other sums
            picked = part.pick_rows(torch.tensor([2, 0])).finished()
            assert torch.allclose(picked.expand(2, -1, -1, -1), expected[[2, 0]], atol=1e-6)


def test_decoder_biases_and_layer_equal_the_slow_ones(tiny_ofa: Any, ofa_inputs: Any) -> None:
    model, inputs = tiny_ofa(), ofa_inputs()
    decoder, ids = model.model.decoder, torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(3))
    w = weights(decoder)
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
        states, places = encoded.last_hidden_state, encoded.position_embeddings[0]
        mask = torch.cat([torch.ones(2, 6), inputs["attention_mask"]], 1)
        biases = decoder.biases(0, 12, places, None, mask)
        hidden = decoder.embed(ids)
        out = decoder.layers[1](hidden, biases.self_bias(1), states, biases.cross)
    own = norm(w, "pos_ln", w["embed_positions.weight"][:12])
    bias = position_scores(w, "self_position_scores", own, own, 4)
    for a in range(12):
        for b in range(12):
            bias[:, a, b] = bias[:, a, b] + w["token_rel_pos.1.weight"][bucket(b - a, 8, 80)] if b <= a else -np.inf
    cross = position_scores(w, "cross_position_scores", own, places.double().numpy(), 4)
    cross[:, :, 6 + 4 :] = -np.inf  # the second row's pads
    expected = decoder_layer(weights(decoder.layers[1]), hidden[1].double().numpy(), bias, states[1].double().numpy(), cross, 4)
    assert np.abs(out[1].double().numpy() - expected).max() < TOLERANCE * 5


def test_folding_a_bias_equals_attending_row_by_row() -> None:
    bias = torch.randn(6, 4, 5, 7)  # 2 encoder rows, 3 decoder rows each
    folded = fold_bias(bias, 2, 3)
    for row in range(6):
        assert torch.equal(folded[row // 3, :, (row % 3) * 5 : (row % 3 + 1) * 5], bias[row])


@pytest.mark.parametrize("bias_rows", [1, 2, 6])
def test_rows_that_share_an_encoder_row_equal_explicit_repeats(tiny_ofa: Any, bias_rows: int) -> None:
    layer = tiny_ofa().model.decoder.layers[0]
    torch.manual_seed(5)
    hidden, states = torch.randn(6, 5, 32), torch.randn(2, 9, 32)
    own, cross = torch.randn(1, 4, 5, 5), torch.randn(bias_rows, 4, 5, 9)
    with torch.no_grad():
        shared = layer(hidden, own, states, cross)
        repeated = layer(hidden, own, states.repeat_interleave(3, 0), cross.repeat_interleave(6 // bias_rows, 0))
        wrong = layer(hidden, own, states.repeat(3, 1, 1), cross.repeat_interleave(6 // bias_rows, 0))
    assert torch.allclose(shared, repeated, atol=1e-5)  # another order of the same sums
    assert not torch.allclose(shared, wrong, atol=1e-2)
