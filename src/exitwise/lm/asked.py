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
        logits = sound(logits.float())
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


def sound(logits: Tensor) -> Tensor:
    """The logits. Raises InputError where one is no number: nothing sensible can be picked from them."""
    if bool(torch.isnan(logits).any()):
        raise InputError("The model's logits are NaN. Look at its weights and its dtype (float16 on a CPU overflows in some models).")
    return logits


def likeliest(logits: Tensor) -> list[int]:
    """The token of each row (rows, vocabulary). Raises InputError where a logit is no number: it counts as the greatest, so that it is seen
    among the picked ones."""
    picks = logits.argmax(-1)
    sound(logits.gather(-1, picks[:, None]))
    found: list[int] = picks.tolist()
    return found


def asked_of(model: Any, given: Mapping[str, Any]) -> Asked:
    """The arguments of `generate`, checked; what this loop does not know is refused, never ignored.

    Raises InputError for prompts that are empty, too long or padded in their middle, UnknownName for an argument that is not taken,
    KnobError for beams.
    """
    for name in given:
        if name not in TAKEN:
            raise unknown("argument of generate", name, TAKEN)
    configs = [c for c in (given.get("generation_config"), model.generation_config) if c is not None]

    def value(name: str, default: Any = None) -> Any:
        """As `generate` has it: the argument, else what the configuration that was given says, else the model's."""
        found = (f for f in (given.get(name), *(getattr(c, name, None) for c in configs)) if f is not None)
        return next(found, default)

    _unheard(value)
    if value("num_beams", 1) != 1:
        raise KnobError(f"num_beams={value('num_beams')} with a language model: this loop decodes one sequence a row. Use num_beams=1.")
    ends = value("eos_token_id", ())
    ends = [ends] if isinstance(ends, int) else [int(e) for e in ends]
    pad = value("pad_token_id", ends[0] if ends else 0)
    pad = int(pad if isinstance(pad, int) else pad[0])
    ids: Any = given.get("input_ids")
    prompts = prompts_of(ids, _mask(ids, given.get("attention_mask"), value("pad_token_id"), ends))
    _known(prompts, model.get_input_embeddings().num_embeddings)
    longest = max(map(len, prompts))
    most = _most(given, configs, ids.shape[1])
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest + most > context:
        raise InputError(
            f"A prompt of {longest} tokens and {most} new ones are more than the {context} that this model can hold. "
            f"Shorten the prompt, or ask for at most {max(0, context - longest)} new tokens."
        )
    return Asked(
        prompts, most, frozenset(ends), pad, _processors(value), bool(value("do_sample", False)), int(given.get("seed", 0)),
        int(value("min_new_tokens", 0)), stopping(value("stop_strings"), given.get("tokenizer")),
        telling(given.get("on_tokens"), given.get("streamer"), len(prompts)),
    )  # fmt: skip


# What `generate` would heed and this loop does not, and the value at which it says nothing.
UNHEARD = {
    "min_length": 0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "sequence_bias": None,
    "guidance_scale": 1, "watermarking_config": None, "num_return_sequences": 1, "max_time": None, "min_p": 0, "top_h": 0,
    "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0,
}  # fmt: skip


def _unheard(value: Callable[..., Any]) -> None:
    """Raises KnobError for a wish in a generation config that this loop would not fulfil."""
    for name, silent in UNHEARD.items():
        found = value(name, silent)
        if found != silent:
            raise KnobError(
                f"{name}={found!r} stands in the generation config, and this loop does not know it. "
                f"Set model.generation_config.{name} = {silent!r}, or call model.generate itself."
            )


def _mask(ids: Any, mask: Any, pad: Any, ends: list[int]) -> Any:
    """The mask that was given; where there is none, pads are told by their id, as `generate` does, unless it ends a row too."""
    if mask is not None or not isinstance(ids, Tensor) or not isinstance(pad, int) or pad in ends:
        return mask
    return ids.ne(pad) if bool(ids.eq(pad).any()) else None


def _known(prompts: list[list[int]], words: int) -> None:
    """Raises InputError for an id that the model has no embedding of."""
    for row, prompt in enumerate(prompts):
        if not 0 <= min(prompt) <= max(prompt) < words:
            wrong = next(t for t in prompt if not 0 <= t < words)
            raise InputError(f"Row {row} has token {wrong}, and the model knows 0..{words - 1}. Use the tokenizer that belongs to it.")


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


def _most(given: Mapping[str, Any], configs: Sequence[Any], width: int) -> int:
    """New tokens at most. width: of input_ids, pads and all, which a max_length counts too; 20 if nothing is said, as in `generate`."""
    most: int | None = None
    for said in (given, *(vars(c) for c in configs)):
        if most is None and said.get("max_new_tokens") is not None:
            most = said["max_new_tokens"]
        elif most is None and said.get("max_length") is not None:
            most = said["max_length"] - width
    most = 20 if most is None else most
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
        if value("top_k", 50):  # the default of `generate`
            out.append(TopKLogitsWarper(value("top_k", 50)))
        if value("top_p", 1.0) < 1.0:
            out.append(TopPLogitsWarper(value("top_p")))
    return out


def stopping(strings: Any, tokenizer: Any) -> StopStringCriteria | None:
    """The criterion for stop strings, None for none. Raises InputError where they come without the tokenizer."""
    if not strings:
        return None
    if tokenizer is None:
        raise InputError("stop_strings needs the tokenizer too: generate(..., stop_strings=[...], tokenizer=tokenizer).")
    return StopStringCriteria(tokenizer, strings)


def telling(on_tokens: Any, streamer: Any, rows: int) -> Callable[[int, list[int]], None] | None:
    """Who is given new tokens: a caller's own function, a streamer of transformers, which shows one row, or both."""
    if streamer is None:
        told: Callable[[int, list[int]], None] | None = on_tokens
        return told
    if rows > 1:
        raise InputError(f"A streamer shows one row, and {rows} came. Use on_tokens=(row, tokens) -> None for several.")

    def both(row: int, tokens: list[int]) -> None:
        streamer.put(torch.tensor(tokens))
        if on_tokens is not None:
            on_tokens(row, tokens)

    return both
