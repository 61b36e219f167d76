"""The tokenizer of the shipped model: byte-level BPE over the training texts, in which every answer is one token."""

from __future__ import annotations

from random import Random

from data import CAPTION_PROMPT, TRUTH_PROMPT, Encode, Sentences, plain_caption, plain_sentence
from features import DATA, read_rows
from questions import ANSWERS, question, sentence
from transformers import PreTrainedTokenizerBase

EASY_ANSWERS = ("yes", "no", "circle", "rectangle", "triangle", "red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SIZE = 2700


def texts(made: int = 6000) -> list[str]:
    """Everything the model reads or says in training; answers are repeated so that each becomes one token."""
    from easy_vqa import get_train_questions

    captions = [plain_caption(text) for row in read_rows(DATA / "flickr8k" / "train.jsonl") for text in row["captions"]]  # type: ignore[attr-defined]
    nlvr = Sentences(lambda text: [], copies=0)
    human = [plain_sentence(str(row["sentence"])) + TRUTH_PROMPT for row in nlvr.rows]
    draw, scenes = Random(0), list(nlvr.scenes.values())
    artificial = [sentence(draw, draw.choice(scenes))[0] for _ in range(made)]
    artificial += [question(draw, draw.choice(scenes))[0] for _ in range(made // 4)]
    answers = [word for word in (*ANSWERS, *EASY_ANSWERS, CAPTION_PROMPT) for _ in range(2000)]
    return [*captions, *human, *artificial, *get_train_questions()[0], *answers]


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Text to ids, without the marks of start and end."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    for word in (*ANSWERS, *EASY_ANSWERS):
        if len(encode(word)) != 1:
            raise ValueError(f"the answer {word!r} is {len(encode(word))} tokens. Raise its count in texts().")
    return encode
