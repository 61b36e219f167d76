"""`exitwise bench --methods`: every method that fits a model, on a user's data, in one table; and exits trained for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .saying import note, show

if TYPE_CHECKING:
    from ..bench.contest import Wish
    from ..bench.schooling import Schooling
    from ..bench.subjects import Subject

HELD, JUDGED, TAUGHT = ("calibration", "val", "validation"), ("test", "dev", "judged"), ("train",)


@dataclass(frozen=True)
class Asked:
    """What a comparison is made on. split, calibration: names of splits, or another folder for the latter."""

    model: str
    task: str | None
    data: Path
    split: str | None = None
    calibration: str | None = None
    limit: int | None = None
    skip_bad: bool = False
    add_caption: bool = False
    beams: int = 1
    seed: int = 0


def compare(asked: Asked, methods: str, exits: Sequence[str], wish: Wish, out: Path) -> dict[str, Any]:
    """The comparison's record. Raises what bad input raises."""
    from tqdm.auto import tqdm

    from ..bench.choosing import telling
    from ..bench.contest import Contest
    from ..bench.entries import entries, given_exits, named

    names = named(methods)
    with tqdm(desc="compare", unit="step", file=sys.stderr, mininterval=0.5) as bar:
        tick = telling(bar)
        subject = subject_of(asked, tick)
        able, unable = entries(subject, names, given_exits(exits, subject.model))
        return Contest(subject, wish, out, tick).run(able, unable, model=asked.model, exits=list(exits))


def subject_of(asked: Asked, tick: Callable[[str], None]) -> Subject:
    """The model with its two splits. Raises InputError for a model that is neither the unified one nor a classifier of texts."""
    from ..bench.subjects import Pictures, Texts

    model, other = _model(asked)
    if asked.task is None:
        held = _rows(model, asked.data, asked.calibration, HELD, asked.limit)
        judged = _rows(model, asked.data, asked.split, JUDGED, asked.limit)
        return Texts(model, other, held, judged, asked.data.name)
    from ..bench import tasks
    from ..bench.ask import Asker

    how = {"skip_bad": asked.skip_bad, "limit": asked.limit, "add_caption": asked.add_caption}
    judged_task = tasks.load(asked.task, asked.data, asked.split, **how)  # type: ignore[arg-type]
    if asked.calibration is not None and Path(asked.calibration).exists():
        held_task = tasks.load(asked.task, asked.calibration, None, **how, usual="calibration")  # type: ignore[arg-type]
    else:
        held_task = tasks.load(asked.task, asked.data, asked.calibration or "calibration", **how)  # type: ignore[arg-type]
    return Pictures(Asker(model, other, asked.beams), held_task, judged_task, asked.data.name, tick)


def teach(asked: Asked, methods: str, school: Schooling, out: Path) -> dict[str, str]:
    """Trains the exits of these methods on the model as it is; method -> the folder with its engine."""
    from dataclasses import replace

    from ..bench.entries import named
    from ..bench.schooling import trainable, trained

    model, other = _model(asked)
    engines = [trainable(model, name) for name in named(methods)]
    batch, told = _lessons(asked, model, other)
    done = {}
    for engine in engines:
        name = engine.method_name
        trained(engine, batch, out / name / "training", replace(school, data=told))
        engine.save(out / name)
        done[name] = str(out / name)
    return done


def _lessons(asked: Asked, model: Any, other: Any) -> tuple[Any, str]:
    """(batches, what tells their rows from others)."""
    from ..bench.lessons import digest, of_pictures, of_texts

    if asked.task is None:
        from ..bench.texts import Encoded

        rows = _rows(model, asked.data, asked.split, TAUGHT, asked.limit)
        return of_texts(Encoded(rows, other, 128), asked.seed), digest(rows)
    from ..bench import tasks
    from ..bench.ask import Asker

    task = tasks.load(asked.task, asked.data, asked.split, asked.skip_bad, asked.limit, add_caption=asked.add_caption, usual="train")
    return of_pictures(Asker(model, other), task, asked.seed), digest(task.items)


def _model(asked: Asked) -> tuple[Any, Any]:
    """(model, what prepares its inputs); a task says that it is the unified one. Raises InputError for one that does not fit the task."""
    from ..errors import InputError
    from ..models.ofa import OFAForConditionalGeneration
    from .loading import model_of, processor_of

    model: Any = model_of(asked.model)
    unified = isinstance(model, OFAForConditionalGeneration)
    if unified and asked.task is None:
        raise InputError("The unified model does two tasks. Say which with --task caption or --task answer.")
    if not unified and asked.task is not None:
        raise InputError(f"--task is for the unified model; {asked.model} is a {type(model).__name__}. Leave --task out.")
    if not unified and not type(model).__name__.endswith("ForSequenceClassification"):
        raise InputError(
            f"{asked.model} is a {type(model).__name__}. Methods are compared on the unified model, and on what "
            "AutoModelForSequenceClassification loads."
        )
    return model, processor_of(asked.model, model)


def _rows(model: Any, data: Path, split: str | None, usual: Sequence[str], limit: int | None) -> list[Any]:
    from ..bench.texts import read, split_file

    if split is not None and Path(split).is_file():
        return list(read(Path(split), model.config.id2label, limit))
    return list(read(split_file(data, split, usual), model.config.id2label, limit))


def say(run: dict[str, Any], out: Path) -> None:
    """The table, who did not fit, and the recommendation."""
    from ..bench import contest_table

    show(contest_table.render(run))
    for each in run["unfit"]:
        note(f"not compared: {each['name']}: {each['reason']}")
    show(f"The runs are in {out}; exitwise report {out} draws them.")
    show(run["recommendation"])
