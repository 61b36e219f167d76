"""Our loop at full depth against `generate` on a model of each family of language models: random weights, one shape."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...engine import Engine
from ...families.llama import small
from .. import speed

SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1536,
    "vocab_size": 32_000, "max_position_embeddings": 512, "initializer_range": 0.02,
}  # fmt: skip
OWN: Mapping[str, Mapping[str, Any]] = {  # the kind of a model -> what `small` needs beside that
    "Llama": {}, "Mistral": {"sliding_window": 64}, "Qwen2": {}, "Qwen3": {"head_dim": 64}, "Gemma": {"head_dim": 64},
    "Gemma2": {"head_dim": 64, "sliding_window": 64, "query_pre_attn_scalar": 64, "attn_implementation": "eager"},
    "Gemma3": {"config": "Gemma3TextConfig", "head_dim": 64, "sliding_window": 64, "query_pre_attn_scalar": 64},
    "Phi": {}, "Phi3": {"original_max_position_embeddings": 512, "sliding_window": 64}, "GPT2": {"model": "GPT2LMHeadModel"},
    "OPT": {"ffn_dim": 1536, "word_embed_proj_dim": 512}, "GPTNeoX": {},
}  # fmt: skip


def made(kind: str) -> Any:
    """A model of a kind with random weights."""
    torch.manual_seed(0)
    return small(kind, **{**SHAPE, **OWN[kind]})[0]


def measure(tokens: int, repeats: int, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """For each kind: how many times as fast as `generate` our loop is, a prompt of 16 tokens and `tokens` new ones in float32.

    The median and the quartiles of the ratios of runs in turn, and whether all tokens are equal.
    """
    how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
    found = []
    for kind in OWN:
        tick(kind)
        model = made(kind)
        ids = torch.randint(5, model.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(0))
        given, engine, said = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, Engine(model, "never"), dict[str, Any]()

        def plain(model: Any = model, given: Any = given, said: dict[str, Any] = said) -> None:
            said["generate"] = model.generate(**given, **how)

        def ours(engine: Engine = engine, given: Any = given, said: dict[str, Any] = said) -> None:
            said["ours"] = engine.generate(**given, **how).sequences

        seconds = speed.alternate({"generate": plain, "ours": ours}, repeats)
        ratios = [one / other for one, other in zip(seconds["generate"], seconds["ours"], strict=True)]
        found.append({
            "kind": kind, "over_generate": statistics.median(ratios), "quartiles": speed.quartiles(ratios),
            "equal": torch.equal(said["generate"], said["ours"]), "times_s": seconds,
        })  # fmt: skip
    return found
