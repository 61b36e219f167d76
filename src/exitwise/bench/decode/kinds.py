"""Our loop at full depth against `generate` on a model of each family of language models: random weights, one shape."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...engine import Engine
from .. import speed

SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1536,
    "vocab_size": 32_000, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
OWN: Mapping[str, Mapping[str, Any]] = {  # the kind of a model -> what its configuration needs beside that, or names otherwise
    "Llama": {}, "Mistral": {"sliding_window": 64}, "Qwen2": {}, "Qwen3": {"head_dim": 64}, "Gemma": {"head_dim": 64},
    "Gemma2": {"head_dim": 64, "sliding_window": 64, "query_pre_attn_scalar": 64, "attn_implementation": "eager"},
    "Gemma3": {"config": "Gemma3TextConfig", "head_dim": 64, "sliding_window": 64, "query_pre_attn_scalar": 64},
    "Phi": {}, "Phi3": {"original_max_position_embeddings": 512, "sliding_window": 64},
    "GPT2": {"model": "GPT2LMHeadModel", "n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 512},
    "OPT": {"ffn_dim": 1536, "word_embed_proj_dim": 512}, "GPTNeoX": {},
}  # fmt: skip
OTHERWISE = ("config", "model")  # of which class the configuration and the model are, where it is not the kind's name with the usual end


def made(kind: str, **other: Any) -> Any:
    """A model of a kind with random weights; other: what is to differ from `SHAPE`."""
    import transformers

    own = dict(OWN[kind])
    config, model = (own.pop(name, f"{kind}{end}") for name, end in zip(OTHERWISE, ("Config", "ForCausalLM"), strict=True))
    usual = {name: value for name, value in SHAPE.items() if kind != "GPT2" or "token" in name or name == "vocab_size"}
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**{**usual, **own, **other})).eval()


def measure(tokens: int, repeats: int, tick: Callable[[str], None], kinds: Mapping[str, Any] = OWN, **other: Any) -> list[dict[str, Any]]:
    """For each kind: how many times as fast as `generate` our loop is, a prompt of 16 tokens and `tokens` new ones in float32.

    The median and the quartiles of the ratios of runs in turn, and whether all tokens are equal.
    """
    how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
    found = []
    for kind in kinds:
        tick(kind)
        model = made(kind, **other)
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
