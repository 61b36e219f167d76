"""A long run: a batch of prompts of unlike length, thousands of tokens each. Memory beyond the keys and values, and the rows run alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine import Engine

PAGE = 4096
STATM = Path("/proc/self/statm")


def lengths(rows: int, longest: int) -> list[int]:
    """Prompts from a quarter of the longest on, no two alike while there is room.

    >>> lengths(4, 40)
    [10, 20, 30, 40]
    """
    return [max(1, longest * (row + 1) // rows) for row in range(rows)]


def prompts(vocabulary: int, rows: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random words, of these lengths."""
    dice = torch.Generator().manual_seed(seed)
    return [torch.randint(5, vocabulary, (length,), generator=dice).tolist() for length in lengths(rows, longest)]


def padded(texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One batch, pads on the left."""
    longest = max(map(len, texts))
    rows = [[0] * (longest - len(text)) + list(text) for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def resident_mib() -> float | None:
    """What this process holds now; None where the system does not tell."""
    return int(STATM.read_text().split()[1]) * PAGE / 2**20 if STATM.exists() else None


def cache_mib(model: Any, tokens: int) -> float:
    """Keys and values of so many tokens in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return float(2 * config.num_hidden_layers * heads * width * tokens * next(model.parameters()).element_size() / 2**20)


def measure(
    engine: Engine, texts: Sequence[Sequence[int]], tokens: int, alone: int | None = None, tick: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The batch, then its rows one by one (the first `alone` of them, evenly spread; None: all).

    unequal: rows whose tokens alone are others. beyond_cache_mib: by how much memory grew from an eighth of the way to the end, less the
    keys and values that were written meanwhile; about 0 where nothing else grows. by_step: (step, MiB held).
    """
    model, rows, marks = engine.model, len(texts), list[tuple[int, float]]()
    every, steps = max(1, tokens // 32), 0

    def told(row: int, new: list[int]) -> None:
        nonlocal steps
        steps += row == 0
        if row == 0 and steps % every == 0 and (now := resident_mib()) is not None:
            marks.append((steps, now))
            tick(f"long run: step {steps} of {tokens}, {now:.0f} MiB")

    how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": []}
    start = time.perf_counter()
    out = engine.generate(**padded(texts), **how, on_tokens=told)
    seconds = time.perf_counter() - start
    assert out.sequences is not None
    together = out.sequences[:, -tokens:].tolist()
    chosen = range(rows) if alone is None else [round(i * (rows - 1) / max(1, alone - 1)) for i in range(alone)]
    unlike = []
    for row in chosen:
        tick(f"long run: row {row} alone")
        single = engine.generate(**padded([texts[row]]), **how)
        assert single.sequences is not None
        said = single.sequences[0, -tokens:].tolist()
        if said != together[row]:
            unlike.append({"row": row, "first": next(i for i, (a, b) in enumerate(zip(said, together[row])) if a != b)})
    return {
        "rows": rows, "tokens": tokens, "prompts": [len(text) for text in texts], "seconds_batch": seconds,
        "tokens_per_second": rows * tokens / seconds, "alone": list(chosen), "unequal": len(unlike), "unlike": unlike,
        "beyond_cache_mib": _beyond(model, marks, rows), "by_step": marks,
    }  # fmt: skip


def _beyond(model: Any, marks: Sequence[tuple[int, float]], rows: int) -> float | None:
    if len(marks) < 8:
        return None
    first, last = marks[len(marks) // 8], marks[-1]
    return last[1] - first[1] - cache_mib(model, rows * (last[0] - first[0]))
