"""`generate` for encoder-decoders: the model's own prepares everything (encoder, prompt, logits processors, stopping), our loop writes.

What `transformers` calls a decoding method is exchanged for the loop, so that all that a model does around it holds as ever: Whisper's
prompts, suppressed tokens and windows of long recordings, forced tokens, stop strings. The encoder runs by the walk, with its own exits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerateEncoderDecoderOutput, MaxLengthCriteria

from ..errors import KnobError
from ..heads import Exits
from ..run.walk import Plan, attached
from ..stack import Family
from ..trace import Trace
from .asked import Asked, prompts_of, stopping, telling
from .backbone import ATTENTIONS, attention_of
from .generate import Generated, begin, padded, traced
from .loop import Loop, Written
from .source import Source
from .stair import POLICIES

# What `generate` gives or heeds and this loop, which asks for a token of one row at a time, does not; with the value that says nothing.
UNMADE: dict[str, Any] = {
    **dict.fromkeys((
        "output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_token_timestamps", "past_key_values",
        "cache_implementation", "assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens", "custom_generate",
        "no_speech_threshold", "logprob_threshold", "condition_on_prev_tokens", "penalty_alpha", "dola_layers", "constraints",
        "force_words_ids", "decoder_inputs_embeds", "decoder_attention_mask", "prefix_allowed_tokens_fn", "logits_processor",
        "stopping_criteria", "encoder_no_repeat_ngram_size", "watermarking_config",
    ), 0),
    "num_beams": 1, "num_return_sequences": 1, "guidance_scale": 1, "encoder_repetition_penalty": 1, "use_cache": True,
}  # fmt: skip


def able(model: Any, plan: Plan, given: Mapping[str, Any]) -> bool:
    """Whether the loop can do what is asked: one sequence a row, attention that takes its masks, and nothing of `UNMADE`."""
    config = given.get("generation_config") or model.generation_config
    found = {name: given[name] if given.get(name) is not None else getattr(config, name, None) for name in UNMADE}
    ours = plan.policy in POLICIES and not (plan.read_all or plan.keep_states) and attention_of(model) in ATTENTIONS
    return ours and not any(_wanted(value, UNMADE[name]) for name, value in found.items())


def _wanted(value: Any, silent: Any) -> bool:
    if isinstance(value, int | float):
        return bool(value != silent)
    return value is not None and (isinstance(value, Tensor) or not hasattr(value, "__len__") or len(value) > 0)


def generate(model: Any, family: Family, plan: Plan, exits: Exits | None, given: Mapping[str, Any]) -> Generated:
    """The model's own `generate` with these arguments, decoded as the plan says. seed and on_tokens are taken besides.

    Without a seed, samples follow torch's global one. Where the model decodes several times (Whisper's long recordings), the trace is that
    of all times, row below row, and there is no depth beside the sequences. Raises KnobError for heads of low rank.
    """
    if plan.rank:
        raise KnobError(f"rank={plan.rank}: a head of low rank is fitted to what a decoder-only model writes of itself. Use rank=0.")
    asked, loops = dict(given), list[Loop]()
    heard = _Heard(asked.pop("seed", None), asked.pop("on_tokens", None), asked.get("streamer"))
    strings, tokenizer = asked.pop("stop_strings", None), asked.pop("tokenizer", None)
    if strings:  # `generate` forgets the tokenizer where the decoding is another's
        asked["stopping_criteria"] = StoppingCriteriaList([*(asked.get("stopping_criteria") or ()), stopping(strings, tokenizer)])

    def decode(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **prepared: Any
    ) -> GenerateEncoderDecoderOutput:
        want = _asked(input_ids, logits_processor, stopping_criteria, generation_config, heard)
        mask = prepared.get("attention_mask") if cross.masked else None
        source = Source(prepared["encoder_outputs"], mask, layers)
        loops.append(begin(model, family, plan, exits, want, source=source))
        written = loops[-1].run()
        if heard.streamer is not None:
            heard.streamer.end()
        return GenerateEncoderDecoderOutput(sequences=torch.cat([input_ids, padded(written.tokens, want.pad).to(input_ids)], 1))

    assert family.language is not None and family.language.cross is not None
    cross, stacks = family.language.cross, family.stacks_of(model)
    layers = next(len(stack.layers(model)) for stack in stacks if stack.kind == "decoder")
    encoders = replace(family, stacks=tuple(stack for stack in stacks if stack.kind == "encoder"))
    with torch.no_grad(), attached(model, encoders, replace(plan, decoding=None)) as session:
        out = model.generate(**{**asked, "return_dict_in_generate": True}, custom_generate=decode)
    encoder = session.trace
    encoder.head_calls = 0  # the loops count theirs
    trace = Trace.cat([encoder, *(traced(loop) for loop in loops)])
    depth = padded(loops[0].written.depths, 0) if len(loops) == 1 else None
    return Generated(out["sequences"], depth, trace, _joined([loop.written for loop in loops]))


class _Heard:
    """What a caller gives besides, that no `generate` of a model knows."""

    def __init__(self, seed: int | None, on_tokens: Callable[[int, list[int]], None] | None, streamer: Any) -> None:
        self.seed, self.on_tokens, self.streamer = seed, on_tokens, streamer

    def dice(self, sample: bool) -> int:
        """The seed of one decoding; drawn from torch's own generator if none was given."""
        if self.seed is not None or not sample:
            return self.seed or 0
        return int(torch.randint(2**62, ()))


def _asked(ids: Tensor, processors: LogitsProcessorList, criteria: Sequence[Any], config: Any, heard: _Heard) -> Asked:
    """What `generate` has prepared, in our words; lengths and ends are known here, and need no criterion."""
    more = StoppingCriteriaList([c for c in criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)])
    ends = config.eos_token_id if config.eos_token_id is not None else ()
    ends = [ends] if isinstance(ends, int) else [int(end) for end in ends]
    pad = config.pad_token_id if config.pad_token_id is not None else ends[0] if ends else 0
    return Asked(
        prompts_of(ids, None), config.max_length - ids.shape[1], frozenset(ends), int(pad), processors, bool(config.do_sample),
        heard.dice(bool(config.do_sample)), 0, more or None, telling(heard.on_tokens, heard.streamer, len(ids)),
    )  # fmt: skip


def _joined(parts: Sequence[Written]) -> Written:
    """What several loops wrote, rows below rows, counts added."""
    out = Written([], [])
    for part in parts:
        out.tokens += part.tokens
        out.depths += part.depths
        out.per_round += part.per_round
        for name in ("rounds", "drafted", "accepted", "skipped"):
            setattr(out, name, getattr(out, name) + getattr(part, name))
        out.stopped = out.stopped or part.stopped
    return out
