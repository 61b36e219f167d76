"""The tokenizer of OFA: lower-case byte-level BPE with a leading space, trained here on a user's own texts."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0..4


def train_tokenizer(texts: Iterable[str], vocab_size: int, codes: int = 0, bins: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` entries, of which 5 are special and 256 are bytes; codes and bins come on top.

    `codes` adds <code_i> for image codes (8192 in the official sizes), `bins` adds <bin_i> for places (1000 there).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = [f"<code_{index}>" for index in range(codes)] + [f"<bin_{index}>" for index in range(bins)]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
