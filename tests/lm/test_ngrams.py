"""Drafts from n-grams: what they offer, what a table keeps, and that what comes out is the model's own text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.families.cases import made
from tests.lm.parts import batch

from exitwise import Engine
from exitwise.errors import InputError
from exitwise.lm.ngrams import Grams, Table
from exitwise.methods.ngram import taught


def test_the_longest_context_and_its_latest_place_count() -> None:
    grams = Grams(1)
    assert grams.offer(0, [1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 1) == [9]  # after 1 2 3, although 2 3 was followed by 8 last
    assert grams.offer(0, [1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 5, 2, 3], 3) == [5, 2, 3]  # after 2 3 comes 5 now, and so on from there
    assert Grams(1, least=4).offer(0, [1, 2, 3, 9, 1, 2, 3], 2) == []
    assert Grams(1).offer(0, [7], 3) == [] and Grams(1).offer(0, [1, 2, 1], 0) == []


def test_more_is_offered_while_the_text_repeats_itself() -> None:
    """Five tokens that stood there before: as many as are asked for; four of them, or a text that is shorter: two."""
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert Grams(1, drafts=2).offer(0, [*text, 1, 2, 3, 4, 5], 6) == [6, 7, 8, 9, 1, 2]
    assert Grams(1, drafts=2).offer(0, [*text, 7, 2, 3, 4, 5], 6) == [6, 7]
    assert Grams(1, drafts=2).offer(0, [1, 2, 1, 2], 6) == [1, 2] and Grams(1, drafts=2).offer(0, [*text, 1, 2, 3, 4, 5], 1) == [6]


def test_rows_have_texts_of_their_own_and_go_with_their_numbers() -> None:
    grams = Grams(2)
    grams.offer(0, [1, 2, 1], 1), grams.offer(1, [1, 3, 1], 1)
    grams.keep([1])
    assert grams.offer(0, [1, 3, 1], 1) == [3]


def test_a_table_keeps_the_likeliest_of_the_models_own_words() -> None:
    texts = [([5, 6, 7, 8], 2), ([6, 7, 8], 1), ([6, 7, 9], 1)]  # the first text's 6 belongs to its prompt
    table = Table.learn(texts)
    assert [table.after(c) for c in ((6,), (7,), (6, 7), (5, 6, 7), (5,))] == [7, 8, 8, 8, None]
    seldom = Table.learn([*texts, ([1, 2], 1)], orders=1, least=3)
    assert seldom.after((7,)) == 8 and seldom.after((1,)) is None and seldom.after((6, 7)) is None
    assert Grams(1, table).offer(0, [4, 6], 2) == [7, 8]
    assert Grams(1, table).offer(0, [7, 1, 7], 1) == [1]  # the text itself goes first
    with pytest.raises(InputError, match="no text to learn from"):
        Table.learn([])


@pytest.mark.parametrize("lengths", [(12,), (12, 5, 9)])
@pytest.mark.parametrize("knobs", [{}, {"drafts": 2}, {"least": 2, "drafts": 8}, {"drafts": 1, "repeats": 9}])
def test_the_text_is_the_models_own(lengths: tuple[int, ...], knobs: dict[str, int], tmp_path: Path) -> None:
    model, _ = made("llama")
    inputs = batch(*lengths)
    want = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    rows = [(row.tolist(), inputs["input_ids"].shape[1]) for row in want]
    engine = Engine(model, "ngram", **knobs)
    for each in (engine, Engine(model, "ngram", exits=taught(engine.shape(), rows), **knobs)):
        out = each.generate(**inputs, max_new_tokens=40)
        assert torch.equal(out.sequences, want)
    assert out.drafts.accepted > 0 and out.trace.calls["model.layers"] < 4 * 40  # taught with this very text, some drafts stand
    each.save(tmp_path / "kept")
    again = Engine.load(tmp_path / "kept", model).generate(**inputs, max_new_tokens=40)
    assert torch.equal(again.sequences, want) and again.drafts.accepted == out.drafts.accepted


def test_sampling_with_offers_follows_the_models_law() -> None:
    """How often the likeliest token comes, first and second, against its probability; every second token was offered."""
    model, _ = made("llama")
    ids = torch.arange(5, 95).repeat(2)[None]  # every token stood there before

    @torch.no_grad()
    def likeliest(tokens: list[int]) -> tuple[int, float]:
        law = model(torch.tensor([tokens])).logits[0, -1].softmax(-1)
        return int(law.argmax()), float(law.max())

    engine = Engine(model, "ngram", drafts=2)
    surplus, spread, offered = [0.0, 0.0], [0.0, 0.0], 0
    for seed in range(400):
        out = engine.generate(input_ids=ids, max_new_tokens=3, do_sample=True, top_k=0, seed=seed)
        tokens = out.sequences[0].tolist()
        offered += out.drafts.drafted
        for place in (0, 1):
            word, chance = likeliest(tokens[: 181 + place])
            surplus[place] += (tokens[181 + place] == word) - chance
            spread[place] += chance * (1 - chance)
    assert offered > 50
    for place in (0, 1):
        assert abs(surplus[place]) < 4 * spread[place] ** 0.5  # four standard errors
