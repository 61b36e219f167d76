"""The shipped model under MuE and under its rivals: fronts on held-out items, and by how much MuE's area differs from the best rival's.

DeeBERT's and PABEE's ramps, DeeCap's and CALM's classifier are trained here, on the frozen shipped model, within a few minutes: captions
on training captions of Flickr8k; answers on the second half of the calibration split, which the base has not seen either. The first half
chooses settings, the test split judges. Stopped, it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine import Engine
from . import tasks
from .areas import gain
from .ask import Asker, load_pair
from .choosing import Tick
from .contest import Contest, Wish
from .entries import entries, named
from .lessons import digest, of_pictures
from .schooling import Schooling, trainable, trained
from .subjects import Pictures

OURS = "mue"
LEARNT = ("deebert", "pabee", "deecap", "calm")
ALL = f"{OURS},{','.join(LEARNT)},static,random,oracle"
FLICKR = Path(".data/flickr8k")


@dataclass(frozen=True)
class Asked:
    """seconds: of training each method's exits. items: of a task, at most so many to choose on, and as many to judge on; a caption takes a
    decoder's step for each word. learnt: most items to learn from. points: settings of each method's front."""

    seconds: float = 40.0
    items: Mapping[str, int] = field(default_factory=lambda: {"answer": 400, "caption": 150})
    learnt: int = 1000
    points: int = 5
    keep: float = 0.99
    timed: int = 12
    seed: int = 0

    def limited(self, limit: int | None, seconds: float | None) -> Asked:
        """The same with at most `limit` items for everything, and other `seconds`; None changes nothing."""
        items = self.items if limit is None else {kind: min(limit, most) for kind, most in self.items.items()}
        learnt = self.learnt if limit is None else min(limit, self.learnt)
        return replace(self, items=items, learnt=learnt, seconds=self.seconds if seconds is None else seconds)


def splits(kind: str, folder: Path, asked: Asked) -> dict[str, tasks.Task]:
    """'held', 'judged' and 'learnt', which share no item."""
    held, judged = (tasks.load(kind, folder, split) for split in ("calibration", "test"))
    most = asked.items[kind]
    if kind == "caption" and (FLICKR / "train.jsonl").exists():
        learnt = tasks.load(kind, FLICKR, "train", limit=asked.learnt)
        return {"held": held.first(most), "judged": judged.first(most), "learnt": learnt}
    half = len(held.items) // 2
    return {
        "held": held.first(min(half, most)), "judged": judged.first(most),
        "learnt": replace(held, items=held.items[half:][: asked.learnt]),
    }  # fmt: skip


def exits_of(asker: Asker, kind: str, task: tasks.Task, asked: Asked, work: Path, tick: Tick) -> dict[str, Engine]:
    """method -> an engine with exits trained on these items."""
    found, batch = {}, None
    for name in LEARNT:
        engine = trainable(asker.model, name)
        school = Schooling(seconds=asked.seconds, seed=asked.seed, data=digest(task.items))
        folder = work / kind / f"{name}-{school.data}-{asked.seconds:g}s"
        if batch is None:
            tick(f"{kind}: items to learn from")
            batch = of_pictures(asker, task, asked.seed)
        tick(f"{kind}: exits of {name}")
        trained(engine, batch, folder, school)
        found[name] = engine
    return found


def run(kind: str, folder: Path, out: Path, work: Path, asked: Asked, tick: Tick = lambda _: None) -> dict[str, Any]:
    """The comparison's record, with 'gain': MuE's area minus the best rival's, for layers and for MACs."""
    asker = Asker(*load_pair(None))
    parts = splits(kind, folder, asked)
    exits = exits_of(asker, kind, parts["learnt"], asked, work, tick)
    subject = Pictures(asker, parts["held"], parts["judged"], f"held-out {kind}", tick)
    able, unable = entries(subject, named(ALL), exits)
    wish = Wish(keep=asked.keep, points=asked.points, timed=asked.timed, seed=asked.seed, examples=0)
    learnt = {"learnt": len(parts["learnt"].items), "learnt_from": parts["learnt"].file.name, "seconds_of_training": asked.seconds}
    found = Contest(subject, wish, out, tick, f"rivals-{kind}").run(able, unable, **learnt)
    return found


def gains(run: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Unit -> MuE's area minus that of the best rival, with its interval."""
    rivals = [line["name"] for line in run["contest"] if line["method"] != OURS]
    return {unit: gain(found, OURS, rivals) for unit, found in run["comparison"].items()}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The flat figures: of each task, and the lesser of the tasks' gains under the key without a task."""
    out: dict[str, float | None] = {}
    found = {run["task"]["kind"]: gains(run)["etr"] for run in runs}
    for kind, one in found.items():
        for end, key in (("", "value"), ("/low", "low"), ("/high", "high")):
            out[f"mue/{kind}/front_gain_over_best_rival{end}"] = None if one is None else one[key]
    least = min((one for one in found.values() if one is not None), key=lambda one: one["value"], default=None)
    for end, key in (("", "value"), ("/low", "low"), ("/high", "high")):
        out[f"mue/front_gain_over_best_rival{end}"] = None if least is None else least[key]
    return out
