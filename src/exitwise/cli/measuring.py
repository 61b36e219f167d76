"""Commands that measure: the demo on the embedded images, the benchmark on a user's folder, and the report of both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .saying import NOT_MET, as_json, guarded, note, show

Results = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the JSON of runs goes.")]


@guarded
def demo(
    out: Results = Path("results"),
    quick: Annotated[bool, typer.Option("--quick", help="A few items only: to see that it works, not what it saves.")] = False,
    seed: options.Seed = 0,
) -> None:
    """The main job on embedded images: full depth beside early exits, answers and captions; tables and one HTML report.

    Thresholds are chosen on the calibration split and judged on the test split. The last line on stdout is one JSON object.

    \b
    Examples:
      exitwise demo
      exitwise demo --quick --out /tmp/demo
    """
    from .loading import SHIPPED, where

    where(SHIPPED)
    from ..bench.demo import main

    raise typer.Exit(main(out, quick=quick, seed=seed))


@guarded
def bench(
    task: options.Task = ...,  # type: ignore[assignment]
    data: options.Data = ...,  # type: ignore[assignment]
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="'shipped', or the folder of a unified model, such as OUT/export.")
    ] = "shipped",
    exits: options.Exits = None,
    split: options.Split = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Choose thresholds on this split or folder. Without it: the embedded one.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of full depth's quality to keep when thresholds are chosen.")] = 0.99,
    preset: options.Preset = None,
    beams: options.Beams = 1,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    add_caption: options.AddCaption = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 if a row was left out.")] = False,
    out: Results = Path("results"),
    seed: options.Seed = 0,
    as_object: options.Json = False,
) -> None:
    """Judge a unified model on your own images: full depth, exits, static depth and random exits at equal cost.

    Give --exits to judge exits that you saved; otherwise thresholds are chosen
    on --calibration. One JSON run goes to --out; `exitwise report` draws it.

    \b
    FOLDER holds images/ and a *.jsonl with one row a line:
      {"image": "a.jpg", "captions": ["a dog", "a brown dog"]}
      {"image": "b.png", "sentence": "There is a box.", "label": "true"}
      {"image": "c.jpg", "hypothesis": "A dog runs.", "label": "neutral"}

    \b
    Example:
      exitwise bench --task caption --data pictures --split test --skip-bad
    """
    from .. import methods
    from ..errors import KnobError
    from .loading import unified, where

    methods.load("mue").preset(preset)
    if exits is not None and preset is not None:
        raise KnobError(f"--exits has its settings with it, so --preset {preset} says them twice. Leave one of them out.")
    if model == "shipped":
        where(model)
    else:
        unified(model, "bench")
    from tqdm.auto import tqdm

    from ..bench import table
    from ..bench.choosing import telling
    from ..bench.measure import judge

    with tqdm(desc=task.value, unit="step", file=sys.stderr, mininterval=0.5) as bar:
        record = judge(
            task.value, data, model=None if model == "shipped" else model, exits=exits, split=split, calibration=calibration, limit=limit,
            skip_bad=skip_bad, add_caption=add_caption, out=out, seed=seed, keep=keep, preset=preset, beams=beams,
            tick=telling(bar, f"{task.value}: "),
        )  # fmt: skip
    skipped = record["task"]["skipped"]
    if as_object:
        as_json(record)
    else:
        show_table(table.render(record, 80))
        show(f"The run: {out / record['file']}" if record.get("file") else f"The run is in {out}.")
    for each in skipped:
        note(f"left out: {each}")
    if skipped:
        note(f"{len(skipped)} rows were left out.")
    if skipped and strict:
        raise typer.Exit(NOT_MET)


def show_table(drawn: Any) -> None:
    """A table that is text already."""
    typer.echo(drawn if isinstance(drawn, str) else str(drawn))


@guarded
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The folder of runs.")] = Path("results"),
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page. Without it: RESULTS/report.html.")] = None,
    as_object: options.Json = False,
) -> None:
    """Draw the HTML report again, from the newest run of each name; one file that loads nothing.

    \b
    Example:
      exitwise report results --out report.html
    """
    from ..bench import record
    from ..bench.report import write
    from ..errors import InputError

    if not results.is_dir():
        raise InputError(f"The folder {results} does not exist. Give one that `exitwise demo` or `exitwise bench` wrote its runs to.")
    runs = [run for run in record.latest(results) if run.get("rows") and run.get("task")]
    if not runs:
        raise InputError(f"{results} holds no finished run with a table. Make one with `exitwise demo` or `exitwise bench`.")
    page = write(runs, out or results / "report.html")
    if as_object:
        as_json({"report": str(page), "runs": [run["name"] for run in runs]})
    else:
        show(f"{len(runs)} runs drawn: {page}")
