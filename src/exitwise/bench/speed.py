"""What exits really save: full depth, exits and the ideal, timed alternately in one process on a model of OFA-Base's shape.

The ideal is the same model cut at the same depths with no criterion and none of this library's machinery: its own modules, each
stream through
the first layers of the encoder, then `generate` on a decoder whose list of layers is cut short. Rows with different depths form
one batch per depth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import Step, similarities
from ..engine import Engine
from ..method import Method
from ..models.ofa import OFAConfig, OFAForConditionalGeneration
from ..models.ofa.encoder import OFAEncoderOutput
from ..run.walk import Plan

Depths = tuple[int, int, int]  # image, text, decoder
MIXED: tuple[Depths, ...] = ((2, 6, 2), (1, 6, 1), (3, 6, 4), (6, 6, 6))


@dataclass(frozen=True)
class Asked:
    """A rule that measures the similarity like MuE's and then leaves where it was told: forced exits at the price of real ones."""

    wanted: Sequence[int]

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int] | None:
        return None

    def may_leave(self, at: Step) -> bool:
        return at.layer < at.layers

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        return similarities(before, after, mask=mask)

    def leaves(self, sureness: Sequence[float], at: Step, rows: Sequence[int]) -> list[bool]:
        """The measured cosine is compared with a limit that lets go, or holds, whatever it is."""
        return [sure > (-2.0 if self.wanted[row % len(self.wanted)] <= at.layer else 2.0) for sure, row in zip(sureness, rows, strict=True)]


def base_model(seed: int = 0) -> OFAForConditionalGeneration:
    """OFA-Base's stacks with random weights and a decomposed encoder. The stem stays out of the timing: features are given."""
    torch.manual_seed(seed)
    config = OFAConfig.size("base")
    config.decomposed = True
    model = OFAForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model


def inputs(model: OFAForConditionalGeneration, rows: int, grid: int = 30, words: int = 12) -> dict[str, Tensor]:
    """Features of a 480 x 480 image (900 tokens) and a prompt."""
    ids = torch.randint(10, 5000, (rows, words))
    features = torch.randn(rows, grid, grid, model.config.stem_channels)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_features": features}


def exits(model: OFAForConditionalGeneration, depths: Sequence[Depths]) -> Engine:
    """An engine whose rows leave at the given depths, asking after every layer."""
    streams = ("image", "text", "decoder")
    rules = {stream: Asked([d[i] for d in depths]) for i, stream in enumerate(streams)}
    return Engine(model, Method("forced", "forced exits that ask", lambda settings, layers: Plan(rules)))


@contextmanager
def _cut(model: OFAForConditionalGeneration, depth: int) -> Iterator[None]:
    decoder = model.model.decoder
    whole = decoder.layers
    decoder.layers = nn.ModuleList(list(whole)[:depth])
    try:
        yield
    finally:
        decoder.layers = whole


def ideal(model: OFAForConditionalGeneration, given: dict[str, Tensor], depths: Depths, **generate: Any) -> Tensor:
    """The model cut at these depths, by hand."""
    encoder = model.model.encoder
    with torch.no_grad(), _cut(model, depths[2]):
        embedded = encoder.embed(given["input_ids"], None, given["image_features"], given["attention_mask"])
        cells, length = given["image_features"].shape[1] * given["image_features"].shape[2], embedded.hidden.shape[1]
        parts = []
        for span, depth in (((0, cells), depths[0]), ((cells, length), depths[1])):
            state = embedded.hidden[:, span[0] : span[1]]
            for index in range(depth):
                state = encoder.layers[index](state, encoder.layer_bias(index, embedded, span))
            parts.append(state)
        states = encoder.layer_norm(torch.cat(parts, 1))
        encoded = OFAEncoderOutput(last_hidden_state=states, position_embeddings=embedded.positions[None])
        out: Any = model.generate(encoder_outputs=encoded, attention_mask=given["attention_mask"], **generate)
        return out


def alternate(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn so that the machine's moods fall on all alike. One warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def realised(
    rows: int, depths: Sequence[Depths], repeats: int = 5, tokens: int = 16, model: OFAForConditionalGeneration | None = None
) -> dict[str, Any]:
    """Share of the possible saving that is realised: (T_full - T_exits) / (T_full - T_ideal), from medians."""
    model = model or base_model()
    given: dict[str, Any] = dict(inputs(model, rows))
    generate: dict[str, Any] = {"max_new_tokens": tokens, "num_beams": 1, "do_sample": False}
    engine = exits(model, depths)
    groups: dict[Depths, list[int]] = {}
    for row in range(rows):
        groups.setdefault(depths[row % len(depths)], []).append(row)

    def full() -> None:
        with torch.no_grad():
            model.generate(**given, **generate)

    def cut() -> None:
        for depth, members in groups.items():
            ideal(model, {k: v[members] for k, v in given.items()}, depth, **generate)

    seconds = alternate({"full": full, "exits": lambda: engine.generate(**given, **generate), "ideal": cut}, repeats)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    share = _realised(medians["full"], medians["exits"], medians["ideal"])
    turns = [_realised(*turn) for turn in zip(seconds["full"], seconds["exits"], seconds["ideal"], strict=True)]
    return {
        "rows": rows,
        "depths": [list(d) for d in depths],
        "realised": share,
        "realised_iqr": quartiles(turns),
        "speedup": medians["full"] / medians["exits"],
        "median_s": medians,
        "times_s": seconds,
    }


def _realised(full: float, exits: float, ideal: float) -> float:
    return (full - exits) / (full - ideal)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile: how far turns of the same measurement lie apart."""
    lower, _, upper = statistics.quantiles(values, n=4)
    return lower, upper


def overhead(repeats: int = 7, tokens: int = 16, model: OFAForConditionalGeneration | None = None) -> dict[str, Any]:
    """Exits enabled and never taken (thresholds just below 1, so that every layer is asked), against the untouched model; ratio of
    medians."""
    model = model or base_model()
    given: dict[str, Any] = dict(inputs(model, 1))
    generate: dict[str, Any] = {"max_new_tokens": tokens, "num_beams": 1, "do_sample": False}
    never = exits(model, [(99, 99, 99)])
    off = Engine(model, "never")

    def full() -> None:
        with torch.no_grad():
            model.generate(**given, **generate)

    runs = {"full": full, "asked": lambda: never.generate(**given, **generate), "walked": lambda: off.generate(**given, **generate)}
    seconds = alternate(runs, repeats)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    return {
        "overhead": medians["asked"] / medians["full"] - 1,
        "overhead_iqr": quartiles([asked / full - 1 for asked, full in zip(seconds["asked"], seconds["full"], strict=True)]),
        "overhead_walked": medians["walked"] / medians["full"] - 1,
        "median_s": medians,
        "times_s": seconds,
    }
