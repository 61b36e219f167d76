"""Language models: their way in and out, what 'propagate' keeps of a token's place, windows, prompts of unlike length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.families.cases import CASES, STEPS, Table, forced, forced_tokens, logits, made, more_rows, write
from torch import Tensor
from transformers import DynamicCache, StaticCache

from exitwise import Engine, families
from exitwise.errors import CacheError, FamilyError
from exitwise.run.cache import frontier_of
from exitwise.run.walk import split_output
from exitwise.stack import Family, discover

LANGUAGE = [case for case, (family, _) in CASES.items() if (found := families.load(family).language) is not None and found.cross is None]
TABLE = ((4, 2, 4, 3, 1, 1, 2, 4), (1, 3, 2, 4, 4, 2, 1, 3))


def seen(tokens: int, window: int | None) -> Tensor:
    """(1, 1, tokens, tokens), 0 where a query sees a key and -inf elsewhere."""
    place = torch.arange(tokens)
    back = place[:, None] - place[None, :]
    allowed = (back >= 0) & (back < (window or tokens))
    return torch.zeros(1, 1, tokens, tokens).masked_fill(~allowed, float("-inf"))


def by_hand(model: Any, family: Family, tokens: list[int], first: int, depths: tuple[int, ...]) -> Tensor:
    """(steps, vocabulary) for one row without a cache: every layer is run over all tokens, each as the state that it shows there.

    The first `first` tokens share depths[0], each later one has its own; to deeper layers a token shows the state in which it left.
    """
    language, (stack,) = family.language, family.stacks_of(model)
    assert language is not None and family.readout is not None
    depth = torch.tensor([depths[0]] * first + list(depths[1:]))
    ids, places = torch.tensor([tokens]), torch.arange(len(tokens))[None]
    state = language.embed(model, ids, places)
    aids = language.aids(model, state, places)
    for index, layer in enumerate(stack.layers(model)):
        mask = seen(len(tokens), language.window(model, index) if language.window is not None else None)
        after, _ = split_output(layer(state, attention_mask=mask, **aids(index)))
        state = torch.where((depth > index)[None, :, None], after, state)
    said: Tensor = family.readout(model, state[:, first - 1 :])[0]
    return said


@pytest.mark.parametrize("case", LANGUAGE)
def test_propagate_keeps_every_tokens_own_place(case: str) -> None:
    """Keys and values of a token that skipped a layer come from the state in which it left, turned by that token's position."""
    model, inputs = made(case)
    family, tokens = families.of(model)[1], forced_tokens(2)
    with Engine(model, forced({"decoder": Table(TABLE)})).attached() as session:
        got = logits(model, inputs, tokens)
    assert session.trace.fills[family.stacks_of(model)[0].path] > 0
    for row, depths in enumerate(TABLE):
        real = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        with torch.no_grad():
            want = by_hand(model, family, real + tokens[row, : STEPS - 1].tolist(), len(real), depths)
            exact = by_hand(model, family, real + tokens[row, : STEPS - 1].tolist(), len(real), (4,) * STEPS)
        torch.testing.assert_close(got[row], want, atol=3e-5, rtol=1e-5)  # float32 sums in another order, logits up to 10
        assert (want - exact).abs().max() > 0.1


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_a_shadow_is_full_depth_over_the_keys_and_values_of_exits(case: str) -> None:
    model, inputs = made(case)
    family, tokens = families.of(model)[1], forced_tokens(2)
    with Engine(model, forced({"decoder": Table(TABLE)}, shadow=True)).attached():
        got = logits(model, inputs, tokens)
    for row, depths in enumerate(TABLE):
        real = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        ids = real + tokens[row, : STEPS - 1].tolist()
        with torch.no_grad():
            want = [by_hand(model, family, ids[: len(real) + t], len(real), (*depths[:t], 4))[-1] for t in range(STEPS)]
        torch.testing.assert_close(got[row], torch.stack(want), atol=3e-5, rtol=1e-5)  # float32 sums in another order, logits up to 10


@pytest.mark.parametrize("case", LANGUAGE)
def test_the_way_in_and_out_is_the_models_own(case: str) -> None:
    model, inputs = made(case)
    family = families.of(model)[1]
    assert family.language is not None and family.readout is not None
    ids = inputs["input_ids"][:1]
    with torch.no_grad():
        want = model(input_ids=ids).logits[0]
        got = by_hand(model, family, ids[0].tolist(), 1, (4,) * ids.shape[1])
    torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-5)  # a mask made by hand takes another kernel
    if family.language.norm is not None:
        assert family.language.norm in dict(model.named_modules()) or case == "opt-projected"


@pytest.mark.parametrize("case", LANGUAGE)
def test_a_window_is_what_the_model_looks_back(case: str) -> None:
    """The last token's logits do not hang on a token that no layer can carry to it, and do on one that a layer can."""
    model, _ = made(case)
    family = families.of(model)[1]
    assert family.language is not None
    spans = [family.language.window(model, i) for i in range(4)] if family.language.window is not None else [None] * 4
    assert spans == {
        "mistral": [6] * 4, "phi3": [6] * 4, "qwen": [None, None, 6, 6], "gemma": [6, 6, None, 6], "gemma-2": [6, None, 6, None],
    }.get(case, [None] * 4)  # fmt: skip
    if None in spans:
        return
    ids = torch.randint(5, 95, (1, 30), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 30 - 1 - 4 * 5 - 1] = 4  # one further than four layers of five tokens back
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[0, -1], model(input_ids=other).logits[0, -1])


def unlike(rows: int) -> dict[str, Tensor]:
    """So many prompts of 3 to 14 tokens, padded on the left."""
    length = 14
    ids = torch.randint(5, 95, (rows, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : (row * 5) % 12] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("case", LANGUAGE)
def test_prompts_of_unlike_length_write_what_the_model_writes(case: str) -> None:
    model, _ = made(case)
    inputs = unlike(5)
    want = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    for policy in ("propagate", "run late", "recompute"):
        out = Engine(model, forced({}, policy)).generate(**inputs, max_new_tokens=12, do_sample=False)
        assert torch.equal(out.sequences, want) and out.depth.shape == (5, 12) and (out.depth == 4).all()


@pytest.mark.parametrize("case", LANGUAGE)
@pytest.mark.parametrize("policy", ["propagate", "run late", "recompute"])
def test_each_row_leaves_as_if_alone(case: str, policy: str) -> None:
    """Rows of unlike length at unlike depths, against the same row by itself, without pads."""
    model, _ = made(case)
    inputs, tokens = unlike(5), forced_tokens(5)
    table = tuple(tuple(TABLE[row % 2][(step + row) % STEPS] for step in range(STEPS)) for row in range(5))
    with Engine(model, forced({"decoder": Table(table)}, policy)).attached():
        together = logits(model, inputs, tokens)
    for row in range(5):
        real = inputs["attention_mask"][row].bool()
        single = {name: value[row : row + 1, real] for name, value in inputs.items()}
        with Engine(model, forced({"decoder": Table(table[row : row + 1])}, policy)).attached():
            by_itself = logits(model, single, tokens[row : row + 1])
        torch.testing.assert_close(by_itself[0], together[row], atol=3e-5, rtol=1e-5)  # float32 sums over other shapes


@pytest.mark.parametrize("case", ["gemma", "mistral"])
def test_windows_run_late_over_many_steps(case: str) -> None:
    """Far past the window, deep layers visited rarely: both exact policies say the same, by unlike means."""
    model, inputs = made(case)
    table = ((4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 4, 1, 3), (1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 4, 2, 2, 2, 2, 4))
    tokens = forced_tokens(2, 20)
    said, first = [], inputs["input_ids"].shape[1]
    for policy in ("run late", "recompute"):
        with Engine(model, forced({"decoder": Table(table)}, policy)).attached(), torch.no_grad():
            out = model.generate(
                **inputs, max_new_tokens=20, return_dict_in_generate=True, output_logits=True,
                prefix_allowed_tokens_fn=lambda row, ids: [int(tokens[row, ids.shape[0] - first])],
            )  # fmt: skip
        said.append(torch.stack(out.logits, 1))
    torch.testing.assert_close(said[0], said[1], atol=3e-5, rtol=1e-5)  # float32 sums over other shapes


def test_a_cache_that_cannot_be_jagged_is_refused_with_a_way_out() -> None:
    model, inputs = made("mistral")
    with pytest.raises(CacheError, match=r"StaticCache.*Use a DynamicCache"), Engine(model, "never").attached():
        model(**inputs, past_key_values=StaticCache(model.config, max_cache_len=40), use_cache=True)
    with pytest.raises(CacheError, match="sliding windows.*another policy"), Engine(model, forced({}, "holes")).attached():
        write(model, inputs)


def test_a_cache_made_without_the_configuration_has_no_windows_but_the_masks_do() -> None:
    model, inputs = made("mistral")
    want = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    cache = DynamicCache()
    with Engine(model, "never").attached():
        got = model.generate(**inputs, max_new_tokens=12, do_sample=False, past_key_values=cache)
    assert torch.equal(got, want) and frontier_of(cache) is not None


def test_layers_that_are_told_the_same_place_share_what_is_kept_of_it() -> None:
    for case, stores in (("llama", 1), ("gemma", 2), ("gpt2", 1)):
        model, inputs = made(case)
        cache = DynamicCache(config=model.config)
        with Engine(model, forced({"decoder": Table(TABLE)})).attached():
            write(model, more_rows(inputs) | {"past_key_values": cache}, forced_tokens(6))
        assert len(frontier_of(cache).places.stores) == stores  # type: ignore[union-attr]


def test_tables_of_another_shape_are_refused_not_guessed() -> None:
    model, inputs = made("llama")
    turn = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: tuple(t[None] for t in turn(x, position_ids))
    for layer in model.model.layers:
        own = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, own=own, position_embeddings, **k: own(
            *a, position_embeddings=tuple(t[0] for t in position_embeddings), **k
        )
    with pytest.raises(FamilyError, match="'run late' or 'recompute'"), Engine(model, forced({"decoder": Table(((1, 4),))})).attached():
        write(model, inputs, forced_tokens(2))


def test_a_rotary_model_of_no_family_is_discovered_and_right() -> None:
    for case in ("llama", "gpt_neox"):
        model, inputs = made(case)
        found, known = (
            Engine(model, forced({"decoder": Table(TABLE)}), family=family) for family in (discover(model), families.of(model)[1])
        )
        said = []
        for engine in (found, known):
            with engine.attached():
                said.append(logits(model, inputs, forced_tokens(2)))
        assert torch.equal(*said)
