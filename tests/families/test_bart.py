"""What 'propagate' means, against a decoder written out token by token: keys and values of skipped layers come from the state that left."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tests.families.cases import STEPS, Table, forced, forced_tokens, logits, made
from torch import Tensor

from exitwise import Engine

TABLE = ((4, 2, 4, 3, 1, 1, 2, 4), (1, 3, 2, 4, 4, 2, 1, 3))


def attend(part: Any, query: Tensor, source: Tensor) -> Tensor:
    """(width,) one query over source states (tokens, width)."""
    heads = part.num_heads
    q, k, v = (
        f(x).view(-1, heads, part.head_dim).transpose(0, 1)
        for f, x in ((part.q_proj, query[None]), (part.k_proj, source), (part.v_proj, source))
    )
    weights = (q @ k.transpose(1, 2) * part.head_dim**-0.5).softmax(-1)
    return part.out_proj((weights @ v).transpose(0, 1).reshape(-1))


def by_hand(model: Any, encoded: Tensor, tokens: list[int], depths: tuple[int, ...]) -> Tensor:
    """(steps, vocabulary) for one row: token t runs depths[t] layers; to deeper layers it shows the state in which it left."""
    decoder = model.model.decoder
    shown: list[list[Tensor]] = [[] for _ in decoder.layers]  # [layer][token]: what the layer makes keys and values of
    said = []
    for place, (token, depth) in enumerate(zip(tokens, depths, strict=True)):
        hidden = decoder.layernorm_embedding(decoder.embed_tokens.weight[token] + decoder.embed_positions.weight[2 + place])
        for index, layer in enumerate(decoder.layers):
            shown[index].append(hidden)
            if index >= depth:
                continue
            hidden = layer.self_attn_layer_norm(hidden + attend(layer.self_attn, hidden, torch.stack(shown[index])))
            hidden = layer.encoder_attn_layer_norm(hidden + attend(layer.encoder_attn, hidden, encoded))
            hidden = layer.final_layer_norm(hidden + layer.fc2(F.gelu(layer.fc1(hidden))))
        said.append(F.linear(hidden, model.lm_head.weight) + model.final_logits_bias[0])
    return torch.stack(said)


def test_propagate_is_the_loop_by_hand() -> None:
    model, inputs = made("bart")
    tokens = forced_tokens(2)
    with Engine(model, forced({"decoder": Table(TABLE)})).attached() as session:
        got = logits(model, inputs, tokens)
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs).last_hidden_state
        for row, depths in enumerate(TABLE):
            real = int(inputs["attention_mask"][row].sum())
            written = [model.config.decoder_start_token_id, *tokens[row, : STEPS - 1].tolist()]
            want = by_hand(model, encoded[row, :real], written, depths)
            torch.testing.assert_close(got[row], want, atol=2e-5, rtol=1e-5)  # float32 sums in another order
            exact = by_hand(model, encoded[row, :real], written, (4,) * STEPS)
            assert (want - exact).abs().max() > 0.1
    missed = sum(
        max((t for t, d in enumerate(row) if d > layer), default=0) + 1 - sum(d > layer for d in row) for row in TABLE for layer in range(4)
    )
    assert session.trace.fills["model.decoder.layers"] == missed


def test_a_shadow_is_full_depth_over_the_keys_and_values_of_exits() -> None:
    """Each token runs all layers over the past as its exits left it: by hand, the last token of a loop in which only those before left."""
    model, inputs = made("bart")
    tokens = forced_tokens(2)
    with Engine(model, forced({"decoder": Table(TABLE)}, shadow=True)).attached() as session:
        got = logits(model, inputs, tokens)
    trace = session.trace
    assert trace.depth["decoder"].tolist() == [list(depths) for depths in TABLE]
    assert trace.rows["model.decoder.layers"] == 2 * STEPS * 4  # all layers run
    # every token that skipped a layer is made good when its row comes to that layer again, but for the last token
    assert trace.fills["model.decoder.layers"] == sum(4 - d for depths in TABLE for d in depths[:-1])
    with torch.no_grad():
        encoded, exact = model.get_encoder()(**inputs).last_hidden_state, logits(model, inputs, tokens)
        for row, depths in enumerate(TABLE):
            real = int(inputs["attention_mask"][row].sum())
            written = [model.config.decoder_start_token_id, *tokens[row, : STEPS - 1].tolist()]
            want = [by_hand(model, encoded[row, :real], written[: t + 1], (*depths[:t], 4))[-1] for t in range(STEPS)]
            torch.testing.assert_close(got[row], torch.stack(want), atol=2e-5, rtol=1e-5)  # float32 sums in another order
    assert (got[:, 0] - exact[:, 0]).abs().max() < 2e-5 and (got - exact).abs().max() > 0.1


def test_cross_attention_is_projected_once_for_each_row_and_layer_that_is_visited() -> None:
    model, inputs = made("bart")
    with Engine(model, forced({"decoder": Table(((3, 1, 1), (1, 2, 1)))})).attached() as session:
        logits(model, inputs, forced_tokens(2))
    assert session.trace.crossed["model.decoder.layers"] == (3 + 2) * 12  # 12 source tokens
