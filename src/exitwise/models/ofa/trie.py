"""A closed set of answers as a tree of tokens, so that generation can say nothing else (Wang et al. 2022, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from exitwise.errors import InputError


class Trie:
    """Answers -> the tokens that may follow what was said so far.

    Each answer is lower-case BPE with a leading space, then eos. An answer may be the beginning of another.
    """

    def __init__(self, answers: Iterable[str], tokenizer: Any) -> None:
        self.eos: int = tokenizer.eos_token_id
        self.paths: dict[str, tuple[int, ...]] = {}
        self._after: dict[tuple[int, ...], list[int]] = {}
        for answer in answers:
            tokens = tokenizer(answer.strip(), add_special_tokens=False)["input_ids"] if answer.strip() else []
            if not tokens:
                raise InputError("an answer of the trie is empty. Every answer needs at least one letter.")
            self.paths[answer] = (*tokens, self.eos)
            for length, token in enumerate(self.paths[answer]):
                following = self._after.setdefault(self.paths[answer][:length], [])
                if token not in following:
                    following.append(token)
        if not self.paths:
            raise InputError("a trie without answers allows nothing. Give at least one answer.")

    def allowed(self, said: Sequence[int]) -> list[int]:
        """Tokens that may come next. After the end of an answer, and off the tree, only eos."""
        return self._after.get(tuple(said), [self.eos])

    def prefix_allowed_tokens_fn(self, prompt_length: int) -> Callable[[int, Tensor], list[int]]:
        """What `generate` takes under this name, for decoder prompts of this many tokens (bos and pads included)."""

        def allowed(row: int, tokens: Tensor) -> list[int]:
            return self.allowed(tokens[prompt_length:].tolist())

        return allowed

    def first_tokens(self) -> tuple[list[str], Tensor] | None:
        """Answers and their first tokens, if one token tells each answer from all others; else None."""
        first = [path[0] for path in self.paths.values()]
        return (list(self.paths), torch.tensor(first)) if len(set(first)) == len(first) else None

    def longest(self) -> int:
        """Tokens of the longest answer, eos included: what `max_new_tokens` must allow."""
        return max(len(path) for path in self.paths.values())
