"""What does the layer-wise loss give each depth? The same small captioner, trained with it and without it, from several seeds.

Two models of a seed begin with the same weights and see the same batches (Flickr8k written as Karpathy's json); one is taught after every
decoder layer, the other after the last alone. Judged is the share of next tokens that each depth says rightly, teacher-forced, on held-out
photos, in points. A seed is one pair; the interval is Student's over the seeds' differences. Stop it at any time: it goes on where it was.

Run from the project's folder, about 10 minutes on one core: python recipes/mue/layerwise.py [--data .data/flickr8k] [--quick]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stage_two import Size, features, write_karpathy
from study import given, summarise
from torch import Tensor

from exitwise.bench import record
from exitwise.bench.course import Course
from exitwise.bench.tasks import Item, Task, load
from exitwise.models import shipped_path
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor
from exitwise.train import Settings, train
from exitwise.train.losses import IGNORED
from exitwise.train.recipe import Recipe

KEY, DEPTH = "ofa/layerwise_gain_depth2", 2
ARMS = {"layer-wise": "uniform", "last-layer": "last"}
MODEL = {
    "d_model": 128, "encoder_layers": 3, "decoder_layers": 6, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "max_position_embeddings": 64, "token_bucket_size": 64, "image_bucket_size": 26,
    "dropout": 0.0, "decomposed": True,
}  # fmt: skip
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # 97.5 % point for so many seeds


@dataclass(frozen=True)
class Amount:
    """Photos to learn from and to judge on, and updates of each model."""

    trained: int = 700
    judged: int = 200
    steps: int = 300
    rows: int = 16


class Study:
    """The data, the features of its photos, and where everything is kept."""

    def __init__(self, data: Path, work: Path, amount: Amount) -> None:
        self.work, self.amount = work, amount
        write_karpathy(data, work, Size(amount.trained, amount.judged))
        self.lessons, self.held = load("caption", work, "train"), load("caption", work, "test")
        self.processor = OFAProcessor.from_pretrained(shipped_path())
        shipped = OFAForConditionalGeneration.from_pretrained(shipped_path(), dtype=torch.float32).eval()
        self.shape = shipped.config
        self.kept = features(shipped, self.processor, [*self.lessons.items, *self.held.items], work / "features.pt")

    def model(self, seed: int) -> OFAForConditionalGeneration:
        """A small model without any training; its stem is not used, the features are."""
        torch.manual_seed(seed)
        sizes = {**MODEL, "vocab_size": self.shape.vocab_size, "image_grids": self.shape.image_grids, "stem": self.shape.stem}
        return OFAForConditionalGeneration(OFAConfig(**sizes))

    def look(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The kept features in place of pixels."""
        return {"image_features": torch.stack([self.kept[item.name] for item in items]).float()}

    def course(self, task: Task, arm: str, seed: int) -> Course:
        """The library's course, with the arm's weights."""
        return Course(task, self.processor, Recipe(rows=self.amount.rows, weights=ARMS[arm]), seed, look=self.look)

    def run(self, arm: str, seed: int) -> list[float]:
        """The accuracies of an arm, as they were kept, or after its training."""
        folder, amount = self.work / f"seed-{seed}" / arm, self.amount
        file = folder / f"accuracy-{amount.steps}-{len(self.held.items)}.json"
        model, course = self.model(seed), self.course(self.lessons, arm, seed)
        settings = Settings(
            folder=folder, steps=amount.steps, lr=1e-3, warmup=amount.steps // 10, seed=seed, log_every=25, save_every_s=30.0,
            learnt={"arm": arm, "items": len(self.lessons.items), "rows": amount.rows, **MODEL},
        )  # fmt: skip
        train(model, course.batch, course.objective, settings)
        if not file.exists():
            file.write_text(json.dumps(accuracies(model.eval(), self.course(self.held, arm, seed))))
        found: list[float] = json.loads(file.read_text())
        return found


@torch.no_grad()
def accuracies(model: OFAForConditionalGeneration, course: Course) -> list[float]:
    """Percent of next tokens of the first caption of each photo that each depth says rightly, depth 1 first."""
    firsts = list({place: index for index, (place, _) in reversed(list(enumerate(course.texts)))}.values())
    right, asked = torch.zeros(model.config.decoder_layers), 0
    for start in range(0, len(firsts), 50):
        lesson = course.lesson(firsts[start : start + 50])
        counts = lesson.labels != IGNORED
        asked += int(counts.sum())
        states = course.states(model, lesson.inputs)
        right += torch.tensor([float((model.readout(s[counts]).argmax(-1) == lesson.labels[counts]).sum()) for s in states])
    return [100 * float(each) / asked for each in right]


def result(found: Mapping[int, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """For each depth: the mean of both arms, their paired difference over the seeds, and its 95 % interval (none for one seed)."""
    rows = []
    for place in range(len(next(iter(found.values()))["layer-wise"])):
        pairs = {seed: each["layer-wise"][place] - each["last-layer"][place] for seed, each in found.items()}
        gain, seeds = statistics.fmean(pairs.values()), len(pairs)
        half = STUDENT[seeds] * statistics.stdev(pairs.values()) / seeds**0.5 if seeds > 1 else None
        means = {arm: statistics.fmean(each[arm][place] for each in found.values()) for arm in ARMS}
        interval = None if half is None else [gain - half, gain + half]
        rows.append({"depth": place + 1, **means, "gain": gain, "interval": interval, "seeds": {str(s): d for s, d in pairs.items()}})
    return {"depths": rows, "metric": "accuracy of the next token, teacher-forced, in percent"}


def main() -> int:
    """Runs all seeds and both arms, writes a run and the keys, prints one JSON line."""
    asked = given(__doc__, Path(".data/layerwise"), max(STUDENT))
    if asked is None:
        return 0
    amount = Amount(48, 24, 20, 8) if asked.quick else Amount()
    config = {"data": "flickr8k", "amount": vars(amount), "model": MODEL, "seeds": asked.seeds, "arms": ARMS}
    with record.run(asked.out, "ofa-layerwise-quick" if asked.quick else "ofa-layerwise", config, asked.seeds[0]) as run:
        study = Study(asked.data, asked.work, amount)
        found = {seed: {arm: study.run(arm, seed) for arm in ARMS} for seed in asked.seeds}
        run.update(result(found))
    told = run["depths"][DEPTH - 1]
    if not asked.quick and told["interval"] is not None:
        summarise(asked.out, KEY, told["gain"], told["interval"])
    print(json.dumps({"depths": run["depths"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
