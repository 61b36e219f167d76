"""The tokenizer of an official OFA, made of the vocabulary files that its makers or the fork of transformers ship."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from exitwise.errors import CheckpointError

from .tokenizer import SPECIAL_TOKENS

FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe", "dict.txt"))  # the fork's; fairseq's, in utils/BPE of OFA's repository
CODES, BINS = 8192, 1000  # <code_i> for images that are written, <bin_i> for places: behind the words, in this order
WANTED = " or ".join(", ".join(names) for names in FILES)


def load_tokenizer(folder: str | Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Lower-case byte-level BPE with a leading space; words, then codes, then bins: `vocab_size` entries. Raises CheckpointError."""
    folder = Path(folder)
    found = next((names for names in FILES if all((folder / name).is_file() for name in names)), None)
    if found is None:
        raise CheckpointError(
            f"{folder} has no vocabulary, without which texts cannot be read. Needed: {WANTED}. The first come with the fork's models, the "
            "others lie in utils/BPE of OFA's repository. Give their folder (--bpe FOLDER), or convert the weights alone (--no-processor)."
        )
    try:
        words = _fork(folder / found[0]) if len(found) == 2 else _fairseq(folder / found[0], folder / found[2])
        merges = _merges(folder / found[1])
        bpe = models.BPE(vocab=words, merges=merges)
    except Exception as problem:  # the tokenizers library raises nothing more exact
        raise CheckpointError(f"The vocabulary in {folder} ({', '.join(found)}) cannot be read: {problem}. Fetch it again.") from problem
    _check(words, vocab_size, folder)
    return _finished(bpe)


def _fork(file: Path) -> dict[str, int]:
    """Words by their ids, ready-made."""
    return {str(word): int(index) for word, index in json.loads(file.read_text(encoding="utf-8")).items()}


def _fairseq(encoder: Path, dictionary: Path) -> dict[str, int]:
    """encoder.json gives each word a number, dict.txt (number, count) the order of the numbers; four specials before, <mask> behind."""
    words = {str(number): word for word, number in json.loads(encoder.read_text(encoding="utf-8")).items()}
    lines = [line.rsplit(" ", 1)[0] for line in dictionary.read_text(encoding="utf-8").splitlines() if line.strip()]
    ordered = [*SPECIAL_TOKENS[:4], *(words.get(number, number) for number in lines), SPECIAL_TOKENS[4]]
    return {word: index for index, word in enumerate(ordered)}


def _merges(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    return [(left, right) for left, right in pairs]


def _check(words: dict[str, int], vocab_size: int, folder: Path) -> None:
    ids = [words.get(special) for special in SPECIAL_TOKENS]
    if ids != [0, 1, 2, 3, len(words) - 1] or sorted(words.values()) != list(range(len(words))):
        raise CheckpointError(
            f"The vocabulary in {folder} is not OFA's: {', '.join(SPECIAL_TOKENS)} have the ids {ids}, of {len(words)} words."
        )
    if len(words) + CODES + BINS != vocab_size:
        raise CheckpointError(
            f"The vocabulary in {folder} has {len(words)} words, with {CODES} codes and {BINS} bins {len(words) + CODES + BINS} entries. "
            f"The checkpoint has {vocab_size}: they do not belong together."
        )


def _finished(bpe: models.BPE) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    names = [f"<code_{index}>" for index in range(CODES)] + [f"<bin_{index}>" for index in range(BINS)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    bos, pad, eos, unk, mask = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, pad_token=pad, eos_token=eos, unk_token=unk, mask_token=mask, padding_side="right",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
