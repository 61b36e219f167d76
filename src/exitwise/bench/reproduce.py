"""A table of MuE's paper on a model and items of one's own: its rows as ways to run, measured like any bench, beside the paper's figures.

What a row needs and is not there (a model trained otherwise) is said to be missing; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import methods
from ..calibrate.budget import NEVER
from ..engine import Engine
from ..errors import InputError, KnobError
from . import differences, paper, record, tasks
from .ask import Asked, Asker
from .at_cost import AtCost
from .choosing import tellable
from .measure import Setup, measure
from .others import Rivals
from .paper import Line, PaperTable
from .ways import Way, engine_for

MAIN, BASE, TINY, PLAIN, FUSED = "checkpoint", "base", "tiny", "without-layerwise", "without-decomposition"
OTHERS = (BASE, TINY, PLAIN, FUSED)  # fine-tuned without MuE; smaller; without the layer-wise loss; with a fused encoder
ABSENT = {
    "tiny": f"give a smaller model fine-tuned for this task with --{TINY}",
    "plain": f"give a model fine-tuned without the layer-wise loss with --{PLAIN}",
}


@dataclass
class Model:
    """One model of the comparison, and what is asked of it. calibration: items that thresholds are chosen on."""

    asker: Asker
    items: Sequence[Asked]
    calibration: Sequence[Asked]
    ways: list[Way] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """The items to judge on and to choose on. name: how the record calls them. add_caption: see `entailment`."""

    task: tasks.Task
    held: tasks.Task
    name: str
    add_caption: bool = False
    lessons: Callable[[], tasks.Task] | None = None  # what exits of other methods learn from; None: the items to choose on


def reproduce(
    number: str,
    askers: Mapping[str, Asker],
    data: Data,
    setup: Setup,
    preset: str = "corrected",
    names: Mapping[str, str] | None = None,
    trials: int = 8,
    knobs: Mapping[str, Any] | None = None,
    exits: Mapping[str, Path] | None = None,
    exit_steps: int = 300,
) -> dict[str, Any]:
    """Table `number` on these models; the record, which is written under `setup.out` too.

    askers: role -> model; MAIN is needed, the others (see OTHERS) fill further rows. preset: 'corrected' chooses thresholds on the
    calibration items so that a row saves what the paper's does; 'paper' and 'released' take theirs as they stand. names: role -> what
    the record calls a model. knobs: of the method, before those of the preset, but for thresholds. exits: another method -> its
    exits; where it trains some and none are given, so many steps on the frozen model. Raises KnobError.
    """
    kind, own = data.task.kind, dict(knobs or {})
    if told := sorted(own.keys() & set(methods.load("mue").calibrated)):
        raise KnobError(f"The rows of the table decide the thresholds ({', '.join(told)} is one). Set other knobs, or use `exitwise run`.")
    wanted = paper.table("mue", number, kind)
    config = {
        "paper": "mue", "table": number, "models": dict(names or {}), "task": kind, "data": data.name, "preset": preset,
        "knobs": own, "beams": setup.beams, "trials": trials, "add_caption": data.add_caption,
    }  # fmt: skip
    name = "-".join(["reproduce-mue", number, kind, *([] if preset == "corrected" else [preset]), *sorted(own)])
    with record.run(setup.out, name, config, setup.seed) as run:
        models = {role: _prepared(askers[role], data, setup) for role in (MAIN, *OTHERS) if role in askers}
        main = models[MAIN]
        scored = kind == "answer" and not tellable(main.asker, kind, [*main.items, *main.calibration])
        rivals = Rivals(data.lessons or (lambda: data.held), setup.out / "exits", exit_steps, setup.seed, exits or {}, scored)
        maker = _Maker(kind, models, preset, own, trials, setup.tick, rivals)
        made = {line.key: maker.way(line) for line in wanted.lines}
        measured = _measured(models, kind, setup)
        run["task"] = {
            "kind": kind, "metric": data.task.metric, "folder": data.name, "split": data.task.split, "items": len(data.task.items),
            "calibration": len(data.held.items), "skipped": [f"{f.where}: {f.what}" for f in data.task.faults],
        }  # fmt: skip
        run["table"] = {"paper": paper.read("mue")["paper"], "number": number, "title": wanted.title, "main": wanted.main(data.task.split)}
        run["lines"] = _lines(wanted, made, measured, data.task.split)
        run["rivals"] = rivals.about
        run["shapes"] = {role: differences.shape(model.asker.model) for role, model in models.items()}
        run["differences"] = differences.sentences(run)
    return run


def _prepared(asker: Asker, data: Data, setup: Setup) -> Model:
    def told() -> None:
        setup.tick("images")

    return Model(asker, asker.prepare(data.task.items, told), asker.prepare(data.held.items, told))


class _Maker:
    """Rows of the paper as ways. A way is put down with the model that it runs on."""

    def __init__(
        self, kind: str, models: Mapping[str, Model], preset: str, knobs: dict[str, Any], trials: int, tick: Callable[[str], None],
        rivals: Rivals,
    ) -> None:  # fmt: skip
        self.kind, self.models, self.preset, self.knobs, self.trials, self.tick = kind, models, preset, knobs, trials, tick
        self.rivals = rivals
        self._choosers: dict[str, AtCost] = {}

    def way(self, line: Line) -> str:
        """The key of the row's way, which is put down; or why there is none."""
        role = {"base": BASE, "tiny": TINY, "plain": PLAIN, "joint": FUSED}.get(line.key, MAIN)
        if line.key in ABSENT and role not in self.models:
            return f"missing: {ABSENT[line.key]}"
        model = self.models.get(role, self.models[MAIN])
        if line.key in ("base", "full", "tiny"):
            model.ways.insert(0, Way("full" if model is self.models[MAIN] else line.key, Engine(model.asker.model, "never")))
            return model.ways[0].key
        settings = self._settings(line, model)
        engine = self._chooser(line, model).engine if line.method else self._engine(line, model)
        engine = engine.with_settings(**settings)
        model.ways.append(Way(line.key, engine, dict(settings)))
        return line.key

    def _engine(self, line: Line, model: Model) -> Engine:
        if line.method is not None:
            return self.rivals.engine(model.asker, line.method)
        joint: dict[str, Any] = {"decompose": False} if line.key == "joint" else {}
        return engine_for(model.asker, self.kind, self.preset, **{**self.knobs, **joint})

    def _chooser(self, line: Line, model: Model) -> AtCost:
        name = line.key if line.method is not None or line.key in ("joint", "plain") else "mue"
        if name not in self._choosers:
            engine, tied = self._engine(line, model), name == "joint"
            self._choosers[name] = AtCost(model.asker, self.kind, engine, model.calibration, tied, self.trials, self.tick)
        return self._choosers[name]

    def _settings(self, line: Line, model: Model) -> dict[str, float]:
        """The row's thresholds: for its depths, as its preset states them, or for its cost."""
        assert line.figures is not None
        if "depths" in line.figures:
            scale = {s: model.asker.model.config.encoder_layers / paper.read("mue")["model"]["layers"] for s in ("image", "text")}
            wanted = {s: max(1.0, depth * scale[s]) for s, depth in zip(scale, line.figures["depths"], strict=True)}
            return {**self._chooser(line, model).at_depths(wanted), "decoder": NEVER}
        stated: dict[str, float] | None = paper.read("mue")["thresholds"].get(self.preset, {}).get(self.kind)
        if stated is not None and line.method is None and not line.key.startswith("cost"):
            return stated
        return self._chooser(line, model).at(line.figures["etr"]).settings


def _measured(models: Mapping[str, Model], kind: str, setup: Setup) -> dict[str, dict[str, Any]]:
    """Key -> row of the bench, model by model; each model's full depth is its clock's reference."""
    rows: dict[str, dict[str, Any]] = {}
    for role, model in models.items():
        if not model.ways:
            continue
        own = model.ways if model.ways[0].engine.method_name == "never" else [Way("full", Engine(model.asker.model, "never")), *model.ways]
        part: dict[str, Any] = {}
        measure(part, model.asker, kind, model.items, own, replace(setup, gallery=0))
        rows |= {row["key"]: {**row, "model": role} for row in part["rows"] if row["key"] not in rows}
    return rows


def _lines(wanted: PaperTable, made: Mapping[str, str], measured: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """Paper and measurement side by side. kept: shares of the reference row's main figure."""
    main, base = wanted.main(split), measured[made[wanted.reference]]["quality"]["value"]
    out = []
    for line in wanted.lines:
        row = measured.get(made[line.key])
        out.append({
            "key": line.key, "label": line.label, "reason": None if row else made[line.key].removeprefix("missing: "),
            "paper": {**(line.figures or {}), "kept": wanted.kept(line, main)}, "measured": row,
            "kept": row["quality"]["value"] / base if row and base else None,
        })  # fmt: skip
    return out


def data_of(
    kind: str,
    folder: str | None,
    split: str | None,
    calibration: str | None,
    limit: int | None,
    skip_bad: bool,
    add_caption: bool | None,
    preset: str,
) -> Data:
    """The items, `limit` of each split at most; the embedded sample without a folder.

    add_caption: None follows the preset, where the rows allow it.
    Raises InputError where nothing is left to choose on.
    """
    if limit == 1:
        raise InputError("One item has neither a spread nor anything to choose on. Give --limit 2 or more.")
    if folder is None:
        if add_caption:
            raise InputError("The embedded sample has no hypotheses with captions. Give --data with rows that have them.")
        found = [tasks.sample(kind, name).first(limit) for name in ("test", "calibration")]
        return Data(found[0], found[1], "embedded sample")
    judged = tasks.load(kind, folder, split, skip_bad, limit)
    others = [name for name in tasks.splits(folder) if name != judged.split]
    chosen = calibration or next((name for name in ("calibration", "val", "dev", "validation") if name in others), None)
    if chosen is None:
        raise InputError(f"Thresholds must not be chosen on the items they are judged on: name another split of {folder} as --calibration.")
    held = tasks.load(kind, folder, chosen, skip_bad, limit)
    taught = next((name for name in ("train", "training") if name in others), None)

    def lessons(told: bool = False) -> tasks.Task:
        return tasks.load(kind, folder, taught, skip_bad, limit, add_caption=told)

    if add_caption or (add_caption is None and preset == "released" and kind == "answer"):
        try:
            told = [tasks.load(kind, folder, name, skip_bad, limit, add_caption=True) for name in (judged.split, chosen)]
            return Data(told[0], told[1], tasks.title(folder), True, partial(lessons, True) if taught else None)
        except InputError:
            if add_caption:
                raise
    return Data(judged, held, tasks.title(folder), lessons=lessons if taught else None)
