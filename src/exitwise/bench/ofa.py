"""What is promised of OFA, measured: MuE's speed end to end with the stem and where the time goes, memory of loading, and deviations.

The speed needs nothing but this package. Files of checkpoints and the independent formulas are those of the tests, so that loading and
deviations are measured from the source tree alone.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import Engine
from ..errors import InputError
from ..models.ofa import OFAForConditionalGeneration
from . import speed

DEPTHS: speed.Depths = (2, 6, 2)
PARTS = ("stem", "encoder image", "encoder text", "encoder both", "decoder", "head")
PRECISIONS = {"float32": ("float32", "file"), "float16": ("file", "float32")}  # of the file -> those it is loaded in


def pictured(model: OFAForConditionalGeneration, rows: int = 1) -> dict[str, Tensor]:
    """The prompt of `speed.inputs`, and pixels of the largest grid that the model takes (480 x 480 for OFA-Base)."""
    given = speed.inputs(model, rows, grid=1)
    height, width = (cells * model.config.stem_stride for cells in model.config.image_grids[0])
    return {
        **{name: value for name, value in given.items() if name != "image_features"},
        "pixel_values": torch.randn(rows, 3, height, width),
    }


def speedup(repeats: int = 7, tokens: int = 16, model: OFAForConditionalGeneration | None = None) -> dict[str, Any]:
    """Pixels to tokens at batch 1: the untouched model over MuE forced to 2/6/2, which asks after every layer; ratio of medians.

    `ideal` is the same without any asking, stem included. profile: seconds by part, see `profile`.
    """
    model = model or speed.base_model()
    given: dict[str, Any] = pictured(model)
    generate: dict[str, Any] = {"max_new_tokens": tokens, "num_beams": 1, "do_sample": False}
    engine, whole = speed.exits(model, [DEPTHS]), Engine(model, "mue")

    def full() -> None:
        with torch.no_grad():
            model.generate(**given, **generate)

    def ideal() -> None:
        with torch.no_grad():
            features = model.model.stem(given["pixel_values"])
        words = {name: value for name, value in given.items() if name != "pixel_values"}
        speed.ideal(model, {**words, "image_features": features}, DEPTHS, **generate)

    def exits() -> None:
        engine.generate(**given, **generate)

    seconds = speed.alternate({"full": full, "exits": exits, "ideal": ideal}, repeats)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    turns = [a / b for a, b in zip(seconds["full"], seconds["exits"], strict=True)]
    return {
        "speedup": medians["full"] / medians["exits"],
        "speedup_iqr": speed.quartiles(turns),
        "speedup_ideal": medians["full"] / medians["ideal"],
        "profile": {
            "full": profile(model, given, full),
            "apart": profile(model, given, lambda: whole.generate(**given, **generate)),
            "exits": profile(model, given, exits),
        },
        "median_s": medians,
        "times_s": seconds,
    }


def profile(model: OFAForConditionalGeneration, given: dict[str, Tensor], run: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Median seconds of each part of a run on these inputs, and of the rest (embeddings, biases outside of layers, Python).

    Where image and text pass a layer together they cannot be told apart: 'encoder both'. Hooks make the whole a little slower.
    """
    taken: list[dict[str, float]] = []
    for turn in range(repeats + 1):
        spent = dict.fromkeys(PARTS, 0.0)
        with _watched(model, given["input_ids"].shape[1], spent):
            start = time.perf_counter()
            run()
            spent["all"] = time.perf_counter() - start
        spent["rest"] = spent["all"] - sum(spent[part] for part in PARTS)
        if turn:
            taken.append(spent)
    return {part: statistics.median(each[part] for each in taken) for part in (*PARTS, "rest", "all")}


@contextmanager
def _watched(model: OFAForConditionalGeneration, words: int, spent: dict[str, float]) -> Iterator[None]:
    """Hooks that add the seconds of each call to its part. words: tokens of the text, by which its stream is known."""
    cells = model.config.image_grids[0][0] * model.config.image_grids[0][1]
    began: list[float] = []

    def enter(*_: Any) -> None:
        began.append(time.perf_counter())

    def stream(state: Tensor) -> str:
        tokens = state.shape[1]
        return "text" if tokens == words else "image" if tokens == cells else "both"

    def leave(part: str) -> Callable[..., None]:
        def add(_: nn.Module, given: tuple[Tensor, ...], __: Any) -> None:
            name = f"encoder {stream(given[0])}" if part == "encoder" else part
            spent[name] += time.perf_counter() - began.pop()

        return add

    modules = [("stem", model.model.stem), ("head", model.lm_head)]
    modules += [("encoder", layer) for layer in model.model.encoder.layers] + [("decoder", layer) for layer in model.model.decoder.layers]
    handles = [handle for part, m in modules for handle in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave(part)))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loading(size: str = "large", folder: Path | None = None) -> dict[str, Any]:
    """Memory and seconds of loading a random fairseq file of an official size, each load in a fresh process.

    load_memory_ratio: peak over the file's size, for a float32 file as the commands read it. loads: also half-precision files, and as the
    file has it. Raises InputError outside the source tree.
    """
    files = _from_tests("ofa_files")
    found: dict[str, Any] = {"size": size, "loads": {}}
    for precision, loaded in PRECISIONS.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            file = Path(place) / f"ofa_{size}.pt"
            files.write_fairseq(file, files.weights(files.SIZES[size], dtype=getattr(torch, precision)))
            for wanted in loaded:
                command = [sys.executable, "-m", "exitwise.bench.loaded", str(file), wanted]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found["loads"][f"{precision} as {wanted}"] = json.loads(done.stdout)
    told = found["loads"]["float32 as float32"]
    return {**found, "load_memory_ratio": told["ratio"], "load_seconds": told["seconds"]}


def deviations(sizes: tuple[str, ...] = ("tiny", "medium", "base", "large")) -> dict[str, Any]:
    """Largest deviation of float32 parts from the formulas in float64, over parts and sizes, as a share of the part's largest entry.

    The whole model, in which the parts' deviations add up, is told beside it and not in the maximum. Raises InputError outside the source
    tree.
    """
    files, parts = _from_tests("ofa_files"), _from_tests("ofa_parts")
    found: dict[str, dict[str, float]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as place:
            found[size] = parts.deviations(files.SIZES[size], Path(place))
    most = max(value for each in found.values() for part, value in each.items() if part != "whole")
    return {"parts_max_error": most, "whole_max_error": max(each["whole"] for each in found.values()), "parts": found}


def _from_tests(name: str) -> Any:
    try:
        return importlib.import_module(f"tests.models.{name}")
    except ImportError as problem:
        raise InputError(f"tests/models/{name}.py is needed and is not here. Run from the folder of the source tree ({problem}).") from None
