"""The most memory that decoding holds, our loop beside the model's own `generate`, each in a process of its own.

Run: python -m exitwise.bench.decode.memory MODEL WAY ROWS PROMPT TOKENS, which prints one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from ..record import peak_gib

WAYS = ("generate", "ours")


def held(model: str, way: str, rows: int, prompt: int, tokens: int) -> dict[str, float]:
    """loaded: the most that loading the model held, GiB; peak: the most in all. To be called in a fresh process."""
    import torch

    from ...engine import Engine
    from ...pretrained import causal_class, source_of, weights_of
    from .forced import inputs

    source = source_of(model)
    loaded = weights_of(source, causal_class(source))
    given, before = inputs(loaded, rows, prompt), peak_gib()
    with torch.no_grad():
        if way == "generate":
            loaded.generation_config.eos_token_id = None
            loaded.generate(**given, max_new_tokens=tokens, do_sample=False)
        else:
            Engine(loaded, "never").generate(**given, max_new_tokens=tokens, do_sample=False, eos_token_id=[])
    return {"loaded_gib": before, "peak_gib": peak_gib()}


def beside(model: str, rows: int = 4, prompt: int = 64, tokens: int = 64, repeats: int = 3) -> dict[str, Any]:
    """Both in turn. peak_over_generate: of the medians of the peaks; grown_gib: what decoding added to the loaded model, of each."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            call = [sys.executable, "-W", "ignore", "-m", "exitwise.bench.decode.memory", model, way, *map(str, (rows, prompt, tokens))]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    peak = {way: statistics.median(run["peak_gib"] for run in runs) for way, runs in found.items()}
    grown = {way: statistics.median(run["peak_gib"] - run["loaded_gib"] for run in runs) for way, runs in found.items()}
    return {
        "rows": rows, "prompt": prompt, "tokens": tokens, "peak_over_generate": peak["ours"] / peak["generate"], "peaks_gib": peak,
        "grown_gib": grown, "runs": found,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(held(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))))
