"""What the layer-wise loss costs: a training step of it and of the plain loss, timed in turn, and the peak memory of each in a process of
its own.

The step is the one that `exitwise train` takes (`Course.objective`, backward, AdamW). Image features are given: the stem, frozen or not, is
the same for both, and would hide the difference. Run: python -m exitwise.bench.training [--size tiny] [--side 480] [--rows 2] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import KnobError
from ..models.ofa import OFAConfig, OFAForConditionalGeneration
from ..models.ofa.tuning import tune
from ..train.losses import IGNORED
from ..train.recipe import Recipe, load
from . import record
from .course import Course, Lesson
from .speed import alternate, quartiles
from .tasks import Item, Task

RECIPE = "mue-coco-caption"
LOSSES = ("plain", "layerwise", "layerwise, all logits kept")


@dataclass(frozen=True)
class Shape:
    """An official size of OFA, the side of its square images in pixels, rows of a batch, and tokens of prompt and caption."""

    size: str = "tiny"
    side: int = 480
    rows: int = 2
    prompt: int = 8
    caption: int = 20

    def model(self, seed: int = 0) -> OFAForConditionalGeneration:
        """Random weights, as the recipe trains them."""
        torch.manual_seed(seed)
        model = OFAForConditionalGeneration(OFAConfig.size(self.size, image_grids=[[self.side // 16] * 2]))
        recipe = load(RECIPE)
        tune(model, decomposed=True, dropout=recipe.dropout, drop_path=recipe.drop_path, freeze_embeddings=recipe.freeze_embeddings)
        return model.train()

    def lesson(self, config: OFAConfig) -> Lesson:
        """A batch of noise; the last fifth of every second caption is pad."""
        ids = torch.randint(10, 50_000, (self.rows, self.prompt))
        said = torch.randint(10, 50_000, (self.rows, self.caption))
        labels = said.clone()
        labels[1::2, -self.caption // 5 :] = IGNORED
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "image_features": torch.randn(self.rows, self.side // 16, self.side // 16, config.stem_channels),
            "decoder_input_ids": said,
        }
        return Lesson(inputs, labels)


def recipe_of(loss: str) -> Recipe:
    """The recipe with the loss that is measured. Raises KnobError for another name."""
    changes: dict[str, dict[str, Any]] = {
        "plain": {"weights": "last", "reduction": "mean"},
        "layerwise": {},
        "layerwise, all logits kept": {"lean": False},
    }
    if loss not in changes:
        raise KnobError(f"loss {loss!r} is unknown. Allowed: {', '.join(LOSSES)}.")
    return load(RECIPE).changed(changes[loss])


def stepper(model: OFAForConditionalGeneration, lesson: Lesson, loss: str) -> Callable[[], None]:
    """One update after the other, with an optimizer of its own."""
    item = Item("noise", "noise", Path("noise"), "noise", ("noise",))
    course = Course(Task("caption", Path("noise"), (item,)), None, recipe_of(loss))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        course.objective(model, lesson)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def times(shape: Shape, repeats: int = 7) -> dict[str, Any]:
    """Seconds of a step, in turn, after a warm-up each; `time_ratio` of medians, layer-wise to plain."""
    model = shape.model()
    lesson = shape.lesson(model.config)
    seconds = alternate({loss: stepper(model, lesson, loss) for loss in LOSSES[:2]}, repeats)
    medians = {loss: statistics.median(each) for loss, each in seconds.items()}
    ratios = [ours / plain for ours, plain in zip(seconds["layerwise"], seconds["plain"], strict=True)]
    iqr = quartiles(ratios) if len(ratios) > 1 else None
    return {"time_ratio": medians["layerwise"] / medians["plain"], "time_ratio_iqr": iqr, "median_s": medians, "times_s": seconds}


def held(which: str) -> int:
    """Bytes of memory of this process: "VmRSS" now, "VmHWM" at most. (getrusage's figure has the parent's in it.)"""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {which}")


def peak(shape: Shape, loss: str, steps: int = 2) -> dict[str, int]:
    """Bytes, in this process: what the libraries hold (`before`), the model with its inputs (`built`), and the peak of a few steps."""
    before = held("VmRSS")
    model = shape.model()
    step = stepper(model, shape.lesson(model.config), loss)
    built = held("VmRSS")
    for _ in range(steps):
        step()
    return {"before": before, "built": built, "peak": held("VmHWM")}


def memory(shape: Shape) -> dict[str, Any]:
    """`memory_ratio`: peaks of fresh processes without the libraries' share, layer-wise to plain."""
    found: dict[str, dict[str, int]] = {}
    for loss in LOSSES:
        command = [sys.executable, "-m", "exitwise.bench.training", "--child", loss, "--shape", json.dumps(asdict(shape))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[loss] = json.loads(said.splitlines()[-1])
    needed = {loss: each["peak"] - each["before"] for loss, each in found.items()}
    return {
        "memory_ratio": needed["layerwise"] / needed["plain"],
        "memory_ratio_all_logits": needed[LOSSES[2]] / needed["plain"],
        "memory_ratio_of_processes": found["layerwise"]["peak"] / found["plain"]["peak"],
        "bytes": found,
    }


def measure(out: Path, shape: Shape, repeats: int = 7) -> dict[str, Any]:
    """One run: both ratios."""
    with record.run(out, "train-cost", {**asdict(shape), "recipe": RECIPE, "dtype": "float32"}, 0) as run:
        run.update(memory(shape))  # first: the children's memory shall not be short of this process's
        run.update(times(shape, repeats))
    return run


def main() -> int:
    """Measures and prints one JSON line; a child prints its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(peak(Shape(**json.loads(given.shape)), given.child)))
        return 0
    run = measure(given.out, Shape(given.size, given.side, given.rows), given.repeats)
    print(json.dumps({name: run[name] for name in ("time_ratio", "time_ratio_iqr", "memory_ratio", "memory_ratio_all_logits", "median_s")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
