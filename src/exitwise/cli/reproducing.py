"""`exitwise reproduce`: a table of a paper on a user's model and data, the paper's figures beside the measured ones."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .saying import as_json, guarded, note, show


class Paper(str, Enum):
    """Papers whose tables are known."""

    mue = "mue"


class PaperTable(str, Enum):
    """Tables of MuE's paper that a checkpoint can be asked for."""

    one = "1"
    two = "2"
    three = "3"
    four = "4"


@guarded
def reproduce(
    which: Annotated[Paper, typer.Argument(metavar="PAPER", help="mue.")],
    table: Annotated[PaperTable, typer.Option(help="1 methods, 2 depths of image and text, 3 trade-off, 4 ablation.")] = ...,  # type: ignore[assignment]
    checkpoint: Annotated[
        str, typer.Option(metavar="MODEL", help="A unified model fine-tuned with MuE; 'shipped' is a small substitute.")
    ] = ...,  # type: ignore[assignment]
    task: options.Task = options.Kind.answer,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="As for train and bench, hub:OWNER/NAME too. Without it: the embedded sample.")
    ] = None,
    split: options.Split = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Thresholds are chosen on it. Without it: calibration, val or dev.")
    ] = None,
    preset: options.Preset = "corrected",
    knobs: options.Set = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="Table 1: the same size, fine-tuned without MuE.")] = None,
    tiny: Annotated[str | None, typer.Option(metavar="MODEL", help="Table 1: OFA-Tiny, fine-tuned.")] = None,
    without_layerwise: Annotated[str | None, typer.Option(metavar="MODEL", help="Table 4: trained on the last layer alone.")] = None,
    without_decomposition: Annotated[str | None, typer.Option(metavar="MODEL", help="Table 4: trained with a fused encoder.")] = None,
    add_caption: Annotated[
        bool | None,
        typer.Option("--add-caption/--no-add-caption", help="Ask hypotheses with the image's caption (D6), as MuE's scripts do."),
    ] = None,
    exits: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD=FOLDER", help="Table 1: exits of another method, saved for this checkpoint. May be repeated."),
    ] = None,
    exit_steps: Annotated[int, typer.Option(min=1, help="Table 1: training of other methods' exits, where they have any.")] = 300,
    trials: Annotated[int, typer.Option(min=1, help="Live runs to find a cost, for captions.")] = 8,
    beams: options.Beams = 1,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the JSON of runs goes.")] = Path("results"),
    seed: options.Seed = 0,
    as_object: options.Json = False,
) -> None:
    """Run a paper's table on your model and data, with the paper's figures beside yours and what makes them differ.

    --preset corrected chooses thresholds on --calibration so that each row saves
    what the paper's does; paper and released take the thresholds that the paper
    and its scripts state. --set changes one knob, to see what it costs. Rows that
    need another model are missing until it is given. docs/reproducing-mue.md goes
    through the tables.

    \b
    Examples:
      exitwise reproduce mue --table 1 --checkpoint shipped
      exitwise reproduce mue --table 3 --checkpoint mine/export --task caption
                         --data coco --split test --calibration val --beams 5
    """
    from tqdm.auto import tqdm

    from .. import methods
    from ..bench import beside
    from ..bench import reproduce as room
    from ..bench.ask import Asker
    from ..bench.choosing import telling
    from ..bench.measure import Setup
    from .loading import unified

    kept, changed, others = preset or "corrected", options.knobs(knobs), _exits(exits)
    methods.load(which.value).preset(kept)
    folder = None if data is None else str(data)
    items = room.data_of(task.value, folder, split, calibration, limit, skip_bad, add_caption, kept)
    given = {
        room.MAIN: checkpoint, room.BASE: base, room.TINY: tiny, room.PLAIN: without_layerwise, room.FUSED: without_decomposition,
    }  # fmt: skip
    names = {role: name for role, name in given.items() if name is not None}
    askers = {}
    for role, name in names.items():
        pair = unified(name, "reproduce")
        askers[role] = Asker(pair.model, pair.processor, beams)
    with tqdm(desc=f"table {table.value}", unit="step", file=sys.stderr, mininterval=0.5) as bar:
        setup = Setup(out=out, seed=seed, beams=beams, tick=telling(bar, f"table {table.value}: "))
        run: dict[str, Any] = room.reproduce(table.value, askers, items, setup, kept, names, trials, changed, others, exit_steps)
    if as_object:
        as_json(run)
    else:
        typer.echo(beside.render(run))
        show(f"The run: {out / run['file']}")
    for each in run["task"]["skipped"]:
        note(f"left out: {each}")


def _exits(given: list[str] | None) -> dict[str, Path]:
    """{method: folder} of ['method=folder']. Raises KnobError and UnknownName."""
    from .. import methods
    from ..errors import KnobError

    found: dict[str, Path] = {}
    for each in given or []:
        name, equals, folder = each.partition("=")
        if not equals or not folder:
            raise KnobError(f"--exits {each!r} is not METHOD=FOLDER. Write for example --exits calm=mine/exits.")
        methods.load(name)
        found[name] = Path(folder)
    return found
