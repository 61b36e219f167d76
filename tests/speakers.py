"""Tiny language models in folders, with a byte-level tokenizer trained here, for whatever loads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.families.cases import CASES

TEXTS = ["the quick brown fox jumps over the lazy dog", "how many apples are left? 12 - 5 = 7", "a b c d e f g h"]
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def tokenizer(pad: bool = True, chat: bool = False) -> Any:
    """Of at most 99 tokens, which is what the tiny models know: single letters and some pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXTS * 5, trainers.BpeTrainer(vocab_size=95, special_tokens=["<pad>", "<s>", "</s>", "<unk>"]))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **({"pad_token": "<pad>"} if pad else {})}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **specials)
    made.chat_template = CHAT if chat else None
    return made


def saved(folder: Path, case: str = "llama", **more: Any) -> tuple[Any, Path]:
    """(the tiny model of a family's case, the folder into which it and a tokenizer were saved)."""
    torch.manual_seed(0)
    model, _ = CASES[case][1]()
    model.save_pretrained(folder)
    tokenizer(**more).save_pretrained(folder)
    return model, folder
