"""Does stage two raise CIDEr? Flickr8k written as Karpathy's json, stage one, then stage two, several seeds, judged on held-out photos.

The model is the small one that comes with the package, fine-tuned by the library's own courses (`bench.course`, `bench.rewarded`) with the
recipes' choices where so small a model allows them; its frozen stem runs once for each photo. It has seen Flickr8k's training photos, with
rewards too, so stage one first takes it back to cross-entropy; the held-out photos were in none of its trainings. Stop it at any time: it
goes on where it was.

Run from the project's folder, about 20 minutes on one core: python recipes/mue/stage_two.py [--data .data/flickr8k] [--quick]
(6 for the features, which are made once; then 4 to 5 for each seed: 2 for each stage, the rest for the held-out photos.)
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from study import given, summarise
from torch import Tensor

from exitwise.bench import record
from exitwise.bench.course import Course
from exitwise.bench.metrics import bootstrap, cider
from exitwise.bench.rewarded import Rewarded
from exitwise.bench.tasks import Item, Task, load
from exitwise.models import shipped_path
from exitwise.models.ofa import OFAForConditionalGeneration, OFAProcessor
from exitwise.models.ofa.tuning import tune
from exitwise.train import Settings, train
from exitwise.train import recipe as recipes
from exitwise.train.recipe import Recipe
from exitwise.train.reward import write

SPLITS = Path(__file__).parents[1] / "shipped" / "splits.json"
KEY = "ofa/stage2_cider_gain"
# The recipes are for a large model and days; what so small a model and minutes ask instead:
SMALL = {"batch": None, "epochs": None, "warmup_share": None, "freeze_embeddings": False, "train_stem": None, "schedule": "cosine"}
STAGES = {
    "one": ("mue-coco-caption", {**SMALL, "rows": 32, "lr": 3e-4, "drop_path": 0.0}),
    "two": ("mue-coco-caption-stage2", {**SMALL, "rows": 32, "lr": 2e-4, "search": "sample", "temperature": 0.7, "longest": 18}),
}


@dataclass(frozen=True)
class Size:
    """Photos to learn from and to judge on, and updates of each stage: steps, so that a busy machine changes nothing but the time."""

    trained: int = 1500
    judged: int = 600
    one: int = 40
    two: int = 45


def write_karpathy(data: Path, work: Path, size: Size) -> None:
    """dataset_flickr8k.json in `work`, with a link to the photos: `train` from Flickr8k's training photos, `test` from those held out."""
    rows = {
        name: [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()] for name in ("train", "dev")
    }
    held = {str(name) for name in json.loads(SPLITS.read_text(encoding="utf-8"))["flickr8k"]["test"]}
    trained = Random(0).sample(rows["train"], min(size.trained, len(rows["train"])))
    judged = [row for row in rows["dev"] if row["image"] in held][: size.judged]
    entries = [
        {"filename": row["image"], "split": split, "sentences": [{"raw": text} for text in row["captions"]]}
        for split, part in (("train", trained), ("test", judged))
        for row in part
    ]
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "images").exists():
        (work / "images").symlink_to((data / "images").resolve(), target_is_directory=True)
    (work / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": entries}), encoding="utf-8")


@torch.no_grad()
def features(model: OFAForConditionalGeneration, processor: OFAProcessor, items: Sequence[Item], file: Path) -> dict[str, Tensor]:
    """Photo -> the stem's map, half precision; kept in `file`, and made only for photos that it lacks. All share the first grid."""
    kept: dict[str, Tensor] = torch.load(file, weights_only=True) if file.exists() else {}
    lacking = [item for item in items if item.name not in kept]
    for start in range(0, len(lacking), 16):
        part = lacking[start : start + 16]
        pixels = processor.encode_images([item.picture() for item in part], processor.image_grids[0])
        kept.update(zip((item.name for item in part), model.model.stem(pixels).half().clone(), strict=True))
    if lacking:
        torch.save(kept, file)
    return kept


@torch.no_grad()
def judge(model: OFAForConditionalGeneration, course: Course, items: Sequence[Item]) -> list[float]:
    """CIDEr-D of the greedy caption of each photo, 100 times the usual scale, on the captions as they were written."""
    texts: list[str] = []
    for start in range(0, len(items), 50):
        part = items[start : start + 50]
        inputs = {**course.look(part), **course.processor.encode_texts([item.prompt for item in part])}
        texts += course.processor.tokenizer.batch_decode(write(model, inputs, longest=20), skip_special_tokens=True)
    return list(cider(texts, [item.references for item in items]).items)


class Study:
    """One model, its data, and where everything is kept."""

    def __init__(self, work: Path, size: Size) -> None:
        self.work, self.size = work, size
        self.processor = OFAProcessor.from_pretrained(shipped_path())
        self.lessons, self.held = load("caption", work, "train"), load("caption", work, "test")
        model = self.model()
        self.kept = features(model, self.processor, [*self.lessons.items, *self.held.items], work / "features.pt")

    def model(self) -> OFAForConditionalGeneration:
        """The shipped model, anew."""
        return OFAForConditionalGeneration.from_pretrained(shipped_path(), dtype=torch.float32)

    def look(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The kept features in place of pixels."""
        return {"image_features": torch.stack([self.kept[item.name] for item in items]).float()}

    def course(self, stage: str, task: Task, seed: int) -> Course:
        """The library's course of a stage."""
        chosen = chosen_recipe(stage)
        return (Rewarded if chosen.reward else Course)(task, self.processor, chosen, seed, look=self.look)

    def stage(self, model: OFAForConditionalGeneration, stage: str, seed: int) -> list[float]:
        """Trains a stage in place, or takes up where it was; then the held-out photos' figures, kept beside it."""
        folder = self.work / f"seed-{seed}" / stage
        chosen, course = chosen_recipe(stage), self.course(stage, self.lessons, seed)
        tune(model, decomposed=True, dropout=chosen.dropout, drop_path=chosen.drop_path)
        settings = Settings(
            folder=folder, steps=vars(self.size)[stage], lr=chosen.lr, warmup=5, betas=chosen.betas,
            weight_decay=chosen.weight_decay, clip=chosen.clip,
            seed=seed, log_every=5, save_every_s=30.0, learnt={**chosen.to_dict(), "items": len(self.lessons.items)},
        )  # fmt: skip
        train(model, course.batch, course.objective, settings)
        file = folder / f"cider-{settings.steps}-{len(self.held.items)}.json"
        if not file.exists():
            file.write_text(json.dumps(judge(model, course, self.held.items)))
        found: list[float] = json.loads(file.read_text())
        return found

    def seed(self, seed: int) -> dict[str, list[float]]:
        """Both stages of one seed: figures of each held-out photo after each."""
        model = self.model()
        return {stage: self.stage(model, stage, seed) for stage in STAGES}


def chosen_recipe(stage: str) -> Recipe:
    """The package's recipe with what a small model asks instead."""
    name, changes = STAGES[stage]
    return recipes.load(name).changed(changes)


def result(found: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
    """Means after each stage and the gain. `interval`: 95 % over photos, each with its mean over the seeds; `seeds`: each seed's."""
    gains = {seed: [two - one for one, two in zip(each["one"], each["two"], strict=True)] for seed, each in found.items()}
    by_photo = [statistics.fmean(each) for each in zip(*gains.values(), strict=True)]
    spread = bootstrap(by_photo)
    return {
        "gain": spread.mean,
        "interval": [spread.low, spread.high],
        "seeds": {
            str(seed): {**{stage: statistics.fmean(points) for stage, points in each.items()}, "gain": statistics.fmean(gains[seed])}
            for seed, each in found.items()
        },
        "photos": len(by_photo),
    }


def main() -> int:
    """Runs all seeds, writes a run and the key, prints one JSON line."""
    asked = given(__doc__, Path(".data/stage_two"), 100)
    if asked is None:
        return 0
    size = Size(48, 24, 2, 2) if asked.quick else Size()
    write_karpathy(asked.data, asked.work, size)
    config = {
        "model": "shipped",
        "data": "flickr8k",
        "size": vars(size),
        "seeds": asked.seeds,
        "recipes": {s: chosen_recipe(s).to_dict() for s in STAGES},
    }
    with record.run(asked.out, "ofa-stage2-quick" if asked.quick else "ofa-stage2", config, asked.seeds[0]) as run:
        study = Study(asked.work, size)
        found = {seed: study.seed(seed) for seed in asked.seeds}
        run.update(result(found))
    if not asked.quick:
        summarise(asked.out, KEY, run["gain"], run["interval"])
    print(json.dumps({name: run[name] for name in ("gain", "interval", "seeds", "photos")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
