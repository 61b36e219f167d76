"""The command that makes exits: thresholds chosen on a user's data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .saying import NOT_MET, as_json, guarded, note, show

if TYPE_CHECKING:
    from ..bench.choosing import Wish
    from ..bench.tasks import Task
    from ..calibrate.budget import Calibration
    from ..engine import Engine
    from .loading import Unified


class Cost(str, Enum):
    """What a budget is counted in."""

    etr = "etr"
    macs = "macs"
    ms = "ms"


@guarded
def calibrate(
    model: options.Model = "shipped",
    task: options.Task = ...,  # type: ignore[assignment]
    data: options.Data = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the exits go (exitwise.json).", show_default=False)] = ...,  # type: ignore[assignment]
    split: options.Split = None,
    keep: Annotated[float, typer.Option(help="Share of full depth's quality to keep, above 0, at most 1.")] = 0.99,
    margin: Annotated[float, typer.Option(min=0, help="Standard errors by which the share must be kept; 0: the mean alone.")] = 0.0,
    confidence: Annotated[
        float | None, typer.Option(help="Promise it for new items of the same source, with this confidence, such as 0.95.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Instead of --keep: the best quality at this share of full depth's mean cost, such as 0.5.")
    ] = None,
    cost: Annotated[Cost, typer.Option(help="Of a budget: layers, counted MACs, or milliseconds measured here.")] = Cost.etr,
    front: Annotated[bool, typer.Option("--front", help="Print and save the whole front of quality against cost.")] = False,
    trials: Annotated[int, typer.Option(min=1, help="Most settings that are run for captions.")] = 24,
    preset: options.Preset = None,
    knobs: options.Set = None,
    beams: options.Beams = 1,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    add_caption: options.AddCaption = False,
    as_object: options.Json = False,
) -> None:
    """Choose the cheapest thresholds that keep the asked share of quality on these items, and save them.

    Answers are judged on a ledger (every item at every exit, without further
    runs), captions by live runs. What is kept here is kept on this data: judge
    it on other items, with `exitwise bench --exits FOLDER`. With --confidence it
    is promised for new items too; where the items are too few for that, the
    saved thresholds never leave early, and the command ends with 1. With
    --budget the mean cost is given and the quality is what can be had for it.
    The model's weights are not copied.

    \b
    Examples:
      exitwise calibrate --task caption --data pictures --split calibration
                         --keep 0.98 --out exits
      exitwise calibrate --task answer --data pictures --budget 0.5
                         --cost macs --front --out exits
    """
    from ..bench import tasks
    from ..bench.choosing import Wish
    from ..calibrate.guarantee import Promise
    from .loading import engine_of, unified

    given = options.knobs(knobs)
    _share(keep)
    wish = Wish(keep, margin, confidence, budget, cost.value, front, trials)
    items = tasks.load(task.value, data, split, skip_bad, limit, add_caption=add_caption)
    pair = unified(model, "calibrate")
    own = {"decoder_scope": "last"} if task.value == "answer" else {}
    engine = engine_of(pair.model, None, None, given, preset, task.value, **own)
    engine, found = _thresholds(engine, pair, items, wish, beams)
    path = engine.save(out)
    for fault in items.faults:
        note(f"left out: {fault.where}: {fault.what}")
    body = {"task": task.value, "file": str(path), "skipped": len(items.faults), **found.to_dict()}
    if as_object:
        as_json({key: value for key, value in body.items() if key != "tried"} | {"tried": len(found.tried)})
    else:
        show(_found(found, items, path))
        if found.front is not None:
            show(_front(found, items))
    if found.promise is not None:
        told = Promise.from_dict(found.promise)
        note(_promise(found) if told.setting is not None else str(told))
        if told.setting is None:
            raise typer.Exit(NOT_MET)


def _promise(found: Calibration) -> str:
    said = found.promise or {}
    return (
        f"Promised with confidence {said['confidence']:g}: the mean loss of new items of the same source is at most "
        f"{100 * said['risk']:.3g} %. A loss is {said['loss']}. "
        f"Bound: {said['bound']}, on {said['rows']} items, whose loss was {100 * said['observed']:.2g} %."
    )


def _share(keep: float) -> None:
    from ..errors import CalibrationError

    if not 0 < keep <= 1:
        raise CalibrationError(f"--keep {keep} is not a share of quality. Allowed: above 0, at most 1; 0.99 keeps 99 %.")


def _thresholds(engine: Engine, pair: Unified, task: Task, wish: Wish, beams: int) -> tuple[Engine, Calibration]:
    """The engine with its thresholds, and what was found. Progress on stderr."""
    import sys

    from tqdm.auto import tqdm

    from ..bench.ask import Asker
    from ..bench.choosing import telling, thresholds

    asker = Asker(pair.model, pair.processor, beams)
    with tqdm(total=len(task.items), desc="images", unit="image", file=sys.stderr, mininterval=0.5) as bar:
        asked = asker.prepare(task.items, bar.update)
    with tqdm(desc="calibrate", unit="run", file=sys.stderr, mininterval=0.5) as bar:
        return thresholds(asker, engine, task.kind, asked, wish, telling(bar))


def _found(found: Calibration, task: Task, path: Path) -> Any:
    from rich.table import Table

    table = Table(title=f"{task.kind}, {found.rows} items of {task.split}", title_justify="left")
    for name in ("", "full depth", "with exits"):
        table.add_column(name, justify="right" if name else "left")
    scale = 100 if task.kind == "answer" and found.quality_full <= 1 else 1
    table.add_row(task.metric, f"{scale * found.quality_full:.1f}", f"{scale * found.quality:.1f}")
    table.add_row("ETR (layers only)", "0 %", f"{100 * found.etr:.0f} %")
    if found.budget is not None and found.cost is not None and found.cost["unit"] != "etr":
        table.add_row(f"mean cost ({found.cost['unit']})", "100 %", f"{100 * found.cost['share']:.0f} %")
    for stream, threshold in found.settings.items():
        table.add_row(f"threshold, {stream}", "1", f"{threshold:.4f}")
    table.caption = f"saved to {path}; judge it on other items with exitwise bench --exits {path.parent}"
    return table


def _front(found: Calibration, task: Task) -> Any:
    from rich.table import Table

    unit = (found.cost or {})["unit"]
    streams = list(found.settings)
    table = Table(title=f"front of {task.kind}: quality for a mean cost ({unit})", title_justify="left")
    for name in ("cost", task.metric, *streams):
        table.add_column(name, justify="right")
    scale = 100 if task.kind == "answer" and found.quality_full <= 1 else 1
    for point in found.front or []:
        thresholds = (f"{point['settings'][s]:.4f}" for s in streams)
        table.add_row(f"{100 * point['cost']:.1f} %", f"{scale * point['quality']:.2f}", *thresholds)
    return table
