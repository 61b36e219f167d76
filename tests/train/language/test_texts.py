"""Texts and chats as training data: which tokens are learnt, pads that change nothing, and rows that cannot be used."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exitwise.errors import InputError
from exitwise.train.language import texts

WORDS = ["[unk]", "[end]", "<user>", "<bot>", *"abcdefghij"]
TEMPLATE = (
    "{% for m in messages %}<{{ 'bot' if m['role'] == 'assistant' else 'user' }}> {{ m['content'] }} [end] {% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)


@pytest.fixture
def tokenizer():
    """One token for each word."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]", chat_template=TEMPLATE)


def written(folder, *rows):
    file = folder / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def shown(sample, tokenizer):
    """(all words, words that are learnt)."""
    all_words = tokenizer.convert_ids_to_tokens(sample.ids.tolist())
    return " ".join(all_words), " ".join(word for word, asked in zip(all_words, sample.asked.tolist(), strict=True) if asked)


def test_of_a_chat_only_what_the_assistant_says_is_learnt_in_every_turn(tmp_path, tokenizer) -> None:
    turns = [("user", "a b"), ("assistant", "c d"), ("user", "e"), ("assistant", "f")]
    file = written(tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]})
    (sample,) = texts.read(file, tokenizer, 100)
    assert shown(sample, tokenizer) == ("<user> a b [end] <bot> c d [end] <user> e [end] <bot> f [end]", "c d [end] f [end]")


def test_prompts_and_answers_and_running_text(tmp_path, tokenizer) -> None:
    samples = texts.read(written(tmp_path, {"prompt": "a b ", "answer": "c"}, {"text": "a b c d e"}), tokenizer, 3)
    assert [shown(sample, tokenizer) for sample in samples] == [("a b c", "c"), ("a b c", "a b c"), ("d e", "d e")]
    plain = tmp_path / "data.txt"
    plain.write_text("a b c d", encoding="utf-8")
    assert [shown(sample, tokenizer)[1] for sample in texts.read(plain, tokenizer, 2)] == ["a b", "c d"]


def test_labels_stand_where_they_are_said() -> None:
    """State t says token t + 1; a first token is said by nobody; pads are not asked and not seen."""
    made = texts.padded([texts.Sample(torch.tensor([5, 6, 7, 8]), torch.tensor([False, False, True, True])),
                         texts.Sample(torch.tensor([5, 6]), torch.tensor([True, True]))], 3)  # fmt: skip
    assert made.labels.tolist() == [[-100, 7, 8, -100], [6, -100, -100, -100]] and made.step == 3
    assert made.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_batches_repeat_by_number_and_every_sample_is_seen_once_an_epoch() -> None:
    samples = [texts.Sample(torch.tensor([number, 1]), torch.ones(2, dtype=torch.bool)) for number in range(7)]
    lessons = texts.Lessons(samples, 2, seed=4, accumulate=3)
    seen = [int(row[0]) for number in range(7) for row in lessons(number).inputs["input_ids"]]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7)) and seen[:7] != seen[7:]
    assert torch.equal(lessons(3).inputs["input_ids"], texts.Lessons(samples, 2, seed=4)(3).inputs["input_ids"])
    assert [lessons(number).step for number in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    shares = [texts.Lessons(samples, 2, seed=4, share=(process, 2)) for process in (0, 1)]
    both = [int(row[0]) for number in range(2) for share in shares for row in share(number).inputs["input_ids"]]
    assert both == seen[:8]


def test_a_digest_tells_what_is_learnt() -> None:
    ids = torch.tensor([3, 4])
    one, other = (texts.Sample(ids, torch.tensor([first, True])) for first in (True, False))
    assert texts.digest([one]) == texts.digest([one]) != texts.digest([other])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "data.jsonl:1 is not JSON"),
        ("[1]", "data.jsonl:1 is a list"),
        ('{"question": "a"}', r"data.jsonl:1 has \['question'\]"),
        ('{"messages": [{"role": "user"}]}', 'needs a "role" and a "content"'),
        ('{"messages": [{"role": "user", "content": "a"}]}', 'no message of the role "assistant"'),
        ('{"prompt": "a b c d e", "answer": "f"}', "holds nothing to learn within 4 tokens"),
    ],
)
def test_rows_that_cannot_be_used_are_named(line: str, says: str, tmp_path, tokenizer) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        texts.read(file, tokenizer, 4)


def test_files_and_tokenizers_that_do_not_fit(tmp_path, tokenizer) -> None:
    with pytest.raises(InputError, match="is not a file"):
        texts.read(tmp_path / "none.txt", tokenizer, 8)
    (tmp_path / "data.csv").write_text("a")
    with pytest.raises(InputError, match="not of a known form"):
        texts.read(tmp_path / "data.csv", tokenizer, 8)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        texts.read(written(tmp_path, {"messages": [{"role": "assistant", "content": "a"}]}), tokenizer, 8)
    tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(InputError, match="rewrites earlier turns"):
        texts.read(written(tmp_path, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}), tokenizer, 8)
