"""What a caller asks of a decoding run, in the words of `generate`: how long, how a token is picked, and when a row ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import InputError, KnobError, unknown

TAKEN = (
    "input_ids", "attention_mask", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id",
    "pad_token_id", "stop_strings", "tokenizer", "streamer", "seed", "generation_config", "num_beams", "use_cache", "min_new_tokens",
    "max_length", "return_dict_in_generate", "on_tokens",
)  # fmt: skip


@dataclass
class Asked:
    """prompts: token ids of each row, without pads. pick: how tokens are chosen. ends: ids after which a row has ended. told: is given each
    row's number and its new tokens as they come."""

    prompts: list[list[int]]
    most: int
    ends: frozenset[int]
    pad: int
    processors: LogitsProcessorList
    sample: bool = False
    seed: int = 0
    least: int = 0
    stop: Callable[[Tensor, Any], Any] | None = None
    told: Callable[[int, list[int]], None] | None = None
    dice: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.dice = torch.Generator().manual_seed(self.seed)

    @property
    def plain(self) -> bool:
        """Greedy with nothing in between: the likeliest token itself."""
        return not self.sample and not self.processors and not self.least

    def law(self, ids: Sequence[int], prompt: int, logits: Tensor) -> Tensor:
        """(vocabulary,) logits after the processors, for the token that follows these ids; float32."""
        logits = _sound(logits.float())
        if self.least > len(ids) - prompt and self.ends:
            logits = logits.index_fill(-1, torch.tensor(sorted(self.ends), device=logits.device), float("-inf"))
        if not self.processors:
            return logits
        seen = torch.tensor([list(ids)], device=logits.device)
        out: Tensor = self.processors(seen, logits[None].clone())[0]
        return out

    def choose(self, law: Tensor) -> int:
        """The token that a law gives: drawn, or the likeliest."""
        if not self.sample:
            return int(law.argmax(-1))
        return int(torch.multinomial(law.softmax(-1).cpu(), 1, generator=self.dice))

    def ended(self, ids: list[int], prompt: int) -> bool:
        """Whether a row ends here."""
        if len(ids) - prompt >= self.most or ids[-1] in self.ends:
            return True
        return self.stop is not None and bool(torch.as_tensor(self.stop(torch.tensor([ids]), None)).all())


def _sound(logits: Tensor) -> Tensor:
    """Raises InputError for logits that are no numbers: nothing sensible can be picked from them."""
    if bool(torch.isnan(logits).any()):
        raise InputError("The model's logits are NaN. Look at its weights and its dtype (float16 on a CPU overflows in some models).")
    return logits


def asked_of(model: Any, given: Mapping[str, Any]) -> Asked:
    """The arguments of `generate`, checked; what this loop does not know is refused, never ignored.

    Raises InputError for prompts that are empty, too long or padded in their middle, UnknownName for an argument that is not taken,
    KnobError for beams.
    """
    for name in given:
        if name not in TAKEN:
            raise unknown("argument of generate", name, TAKEN)
    config = given.get("generation_config") or model.generation_config

    def value(name: str, default: Any = None) -> Any:
        found = given.get(name)
        found = getattr(config, name, None) if found is None else found
        return default if found is None else found

    if value("num_beams", 1) != 1:
        raise KnobError(f"num_beams={value('num_beams')} with a language model: this loop decodes one sequence a row. Use num_beams=1.")
    prompts = prompts_of(given.get("input_ids"), given.get("attention_mask"))
    longest, most = max(map(len, prompts)), _most(given, config, max(map(len, prompts)))
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest + most > context:
        raise InputError(
            f"A prompt of {longest} tokens and {most} new ones are more than the {context} that this model can hold. "
            f"Shorten the prompt, or ask for at most {max(0, context - longest)} new tokens."
        )
    ends = value("eos_token_id", ())
    ends = frozenset([ends] if isinstance(ends, int) else [int(e) for e in ends])
    pad = value("pad_token_id", next(iter(sorted(ends)), 0))
    told = given.get("on_tokens")
    return Asked(
        prompts, most, ends, int(pad if isinstance(pad, int) else pad[0]), _processors(value), bool(value("do_sample", False)),
        int(given.get("seed", 0)), int(value("min_new_tokens", 0)), _stop(value("stop_strings"), given.get("tokenizer")), told if told is
        not None else _streaming(given.get("streamer"), len(prompts)),
    )  # fmt: skip


def prompts_of(ids: Any, mask: Any) -> list[list[int]]:
    """The real tokens of each row, (rows, tokens) and its mask given. Raises InputError for anything else."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"input_ids is {shape}. Give token ids (rows, tokens), one or more each, as a tokenizer returns them.")
    if mask is None:
        return [[int(t) for t in row] for row in ids.tolist()]
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise InputError(f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(ids.shape)}. Give one of the same shape.")
    out: list[list[int]] = []
    for row, real in zip(ids.tolist(), mask.bool().tolist()):
        tokens = [t for t, r in zip(row, real) if r]
        first = real.index(True) if any(real) else 0
        if not tokens:
            raise InputError(f"Row {len(out)} is an empty prompt: its mask has no real token. Give one token or more.")
        if not all(real[first : first + len(tokens)]):
            raise InputError(f"Row {len(out)} has pads between its tokens. Pad prompts on one side only.")
        out.append(tokens)
    return out


def _most(given: Mapping[str, Any], config: Any, longest: int) -> int:
    most = given.get("max_new_tokens")
    if most is None and given.get("max_length") is not None:
        most = given["max_length"] - longest
    if most is None:
        most = config.max_new_tokens if config.max_new_tokens is not None else (config.max_length or 20) - longest
    if most < 1:
        raise InputError(f"{most} new tokens are asked for. Give max_new_tokens of 1 or more (a max_length counts the prompt too).")
    return int(most)


def _processors(value: Callable[..., Any]) -> LogitsProcessorList:
    """Those of transformers, in the order in which `generate` has them."""
    out = LogitsProcessorList()
    if value("repetition_penalty", 1.0) != 1.0:
        out.append(RepetitionPenaltyLogitsProcessor(value("repetition_penalty")))
    if value("do_sample", False):
        if value("temperature", 1.0) != 1.0:
            out.append(TemperatureLogitsWarper(value("temperature")))
        if value("top_k", 0):
            out.append(TopKLogitsWarper(value("top_k")))
        if value("top_p", 1.0) < 1.0:
            out.append(TopPLogitsWarper(value("top_p")))
    return out


def _stop(strings: Any, tokenizer: Any) -> StopStringCriteria | None:
    if not strings:
        return None
    if tokenizer is None:
        raise InputError("stop_strings needs the tokenizer too: generate(..., stop_strings=[...], tokenizer=tokenizer).")
    return StopStringCriteria(tokenizer, strings)


def _streaming(streamer: Any, rows: int) -> Callable[[int, list[int]], None] | None:
    """A streamer of transformers, which shows one row."""
    if streamer is None:
        return None
    if rows > 1:
        raise InputError(f"A streamer shows one row, and {rows} came. Use on_tokens=(row, tokens) -> None for several.")
    return lambda row, tokens: streamer.put(torch.tensor(tokens))
