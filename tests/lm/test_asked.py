"""What a caller may ask, in the words of `generate`: taken as `generate` takes it, or refused with what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.families.cases import made
from tests.lm.parts import batch
from transformers import GenerationConfig

from exitwise import Engine
from exitwise.errors import InputError, KnobError, UnknownName
from exitwise.lm.asked import UNHEARD, asked_of, likeliest, prompts_of

MODEL, _ = made("llama")  # context 256, vocabulary 99, pad 0, no end
IDS = batch(7, 4)


class Letters:
    """A tokenizer as far as stop strings need one: token n is letter n, from a."""

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + n): n for n in range(99)}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 97 for c in text]}

    def _convert_id_to_token(self, token: int) -> str:
        return chr(97 + token)

    convert_ids_to_tokens = _convert_id_to_token

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def __len__(self) -> int:
        return 99


def ask(model: Any = MODEL, **more: Any) -> Any:
    return asked_of(model, {**IDS, **more})


@pytest.mark.parametrize("given, error, said", [
    ({"input_ids": None}, InputError, "input_ids is NoneType"),
    ({"input_ids": [[1, 2]]}, InputError, "input_ids is list"),
    ({"input_ids": torch.tensor([1, 2])}, InputError, r"input_ids is \(2,\)"),
    ({"input_ids": torch.zeros(1, 0).long()}, InputError, r"input_ids is \(1, 0\)"),
    ({"input_ids": torch.ones(1, 3)}, InputError, "Give token ids"),
    ({"attention_mask": torch.ones(2, 3)}, InputError, r"attention_mask \(2, 3\) does not fit input_ids \(2, 7\)"),
    ({"attention_mask": torch.tensor([[1] * 7, [0] * 7])}, InputError, "Row 1 is an empty prompt"),
    ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1] * 7])}, InputError, "Row 0 has pads between"),
    ({"max_new_tokens": 250}, InputError, "7 tokens and 250 new ones are more than the 256.*at most 249"),
    ({"max_new_tokens": 0}, InputError, "0 new tokens"),
    ({"max_length": 7}, InputError, "0 new tokens"),
    ({"input_ids": torch.tensor([[5, 99]]), "attention_mask": None}, InputError, r"Row 0 has token 99, and the model knows 0\.\.98"),
    ({"input_ids": torch.tensor([[5, -1]]), "attention_mask": None}, InputError, "token -1"),
    ({"num_beams": 2}, KnobError, "num_beams=2"),
    ({"num_beam": 1}, UnknownName, "num_beams"),
    ({"logits_processor": []}, UnknownName, "logits_processor"),
    ({"stop_strings": ["x"]}, InputError, "needs the tokenizer"),
    ({"streamer": object()}, InputError, "A streamer shows one row, and 2 came"),
    ({"generation_config": GenerationConfig(no_repeat_ngram_size=2)}, KnobError, "no_repeat_ngram_size=2"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_in_words(given: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ask(**given)


def test_the_context_itself_is_allowed() -> None:
    assert ask(max_new_tokens=249).most == 249


@pytest.mark.parametrize("name", sorted(UNHEARD))
def test_no_wish_of_a_generation_config_is_passed_over(name: str) -> None:
    model, _ = made("llama")
    setattr(model.generation_config, name, 3)
    with pytest.raises(KnobError, match=f"{name}=3 stands in the generation config"):
        ask(model)
    setattr(model.generation_config, name, UNHEARD[name])
    ask(model)


def test_tokens_are_counted_as_generate_counts_them() -> None:
    model, _ = made("llama")
    assert ask(model).most == 20 and ask(model, max_length=10).most == 3  # the longest row has 7, and a max_length counts it with its pads
    assert ask(model, max_length=10, max_new_tokens=5).most == 5
    assert ask(model, generation_config=GenerationConfig(max_length=12)).most == 5
    model.generation_config.max_new_tokens = 9
    assert ask(model).most == 9 and ask(model, generation_config=GenerationConfig(max_new_tokens=4)).most == 4
    assert ask(model, generation_config=GenerationConfig(do_sample=True)).most == 9  # what it leaves open, the model's own says


def test_ends_and_pads() -> None:
    model, _ = made("llama")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [9, 4], None
    assert ask(model).ends == {4, 9} and ask(model).pad == 9  # the first that was named, as in `generate`
    assert ask(model, eos_token_id=3).ends == {3} and ask(model, pad_token_id=8).pad == 8


def test_without_a_mask_pads_are_told_by_their_id_as_in_generate() -> None:
    ids = IDS["input_ids"]
    assert [len(p) for p in asked_of(MODEL, {"input_ids": ids}).prompts] == [7, 4]
    assert [len(p) for p in asked_of(MODEL, {"input_ids": ids, "eos_token_id": 0}).prompts] == [7, 7]
    assert prompts_of(ids, None)[0] == ids[0].tolist()
    right = torch.tensor([[5, 6, 0, 0]])
    assert prompts_of(right, right.ne(0)) == [[5, 6]]


@pytest.mark.parametrize("more", [
    {}, {"temperature": 0.7}, {"top_k": 5, "top_p": 0.8}, {"top_k": 0, "repetition_penalty": 1.4, "temperature": 1.3}, {"top_p": 0.5},
    {"repetition_penalty": 1.4, "min_new_tokens": 3, "eos_token_id": 17},
])  # fmt: skip
@pytest.mark.parametrize("sample", [False, True])
def test_laws_are_those_of_generate(more: dict[str, Any], sample: bool) -> None:
    """The scores of `generate` at its first new token are our law after the prompt."""
    ids = IDS["input_ids"][:1]
    more = {**more, "do_sample": sample} if sample else {k: v for k, v in more.items() if not k.startswith("t")}
    out = MODEL.generate(input_ids=ids, max_new_tokens=4, output_scores=True, output_logits=True, return_dict_in_generate=True, **more)
    asked = asked_of(MODEL, {"input_ids": ids, "max_new_tokens": 4, **more})
    for step in range(4):
        prefix = out.sequences[0, : 7 + step].tolist()
        assert torch.equal(asked.law(prefix, 7, out.logits[step][0]), out.scores[step][0])


def test_a_seed_repeats() -> None:
    law = torch.zeros(50)
    asked = [ask(do_sample=True, seed=seed) for seed in (1, 1, 2)]
    rows = [[a.choose(law) for _ in range(20)] for a in asked]
    assert rows[0] == rows[1] != rows[2]


def test_a_row_ends_by_token_number_or_string() -> None:
    asked = ask(max_new_tokens=3, eos_token_id=9)
    assert asked.ended([5, 5, 9], 2) and asked.ended([5, 1, 1, 1], 1) and not asked.ended([5, 1, 1], 1)
    text = Letters().convert_tokens_to_string([chr(97 + n) for n in (11, 12)])
    asked = ask(max_new_tokens=9, stop_strings=[text], tokenizer=Letters())
    assert asked.ended([5, 11, 12], 1) and not asked.ended([5, 12, 11], 1)


def test_logits_that_are_no_numbers_are_refused_for_any_row_and_place() -> None:
    for lean in ("never", "layerskip"):
        model, _ = made("gpt2")  # its head is tied to its words, so that one word spoils one place of every row
        with torch.no_grad():
            model.transformer.wte.weight[77] = float("nan")
        knobs: dict[str, Any] = {"depth": 2} if lean == "layerskip" else {}
        inputs = batch(7, 4)
        inputs["input_ids"][inputs["input_ids"] == 77] = 6
        with pytest.raises(InputError, match="NaN"):
            Engine(model, lean, **knobs).generate(**inputs, max_new_tokens=4)


def test_nan_in_another_row_than_the_first_is_found() -> None:
    logits = torch.zeros(2, 99)
    assert likeliest(logits) == [0, 0]
    logits[1, 50] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        likeliest(logits)
