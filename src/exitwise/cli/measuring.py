"""Commands that measure: the demo on the embedded images, the benchmark on a user's folder, and the report of both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .comparing import Asked
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
    subject: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="'shipped', or a folder; the same as --model.")] = None,
    task: Annotated[
        options.Kind | None, typer.Option(help="'caption' describes an image; 'answer' chooses among candidates. A classifier has none.")
    ] = None,
    data: options.Data = ...,  # type: ignore[assignment]
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="'shipped', or the folder of a unified model, such as OUT/export.")
    ] = "shipped",
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Compare methods instead: 'all', or names with commas. Classifiers and language models too."),
    ] = None,
    exits: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER", help="Exits that were saved. With --methods NAME=FOLDER, or a folder of such folders; may be repeated."
        ),
    ] = None,
    knobs: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.KNOB=VALUE", help="Language models: a knob, as layerskip.depth=6.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Language models: a trained adapter for kangaroo.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Language models: most new tokens of a prompt.")] = 64,
    split: options.Split = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Choose thresholds on this split or folder. Without it: the embedded one.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of full depth's quality to keep when thresholds are chosen.")] = 0.99,
    margin: Annotated[float, typer.Option(min=0, help="With --methods: standard errors by which it must be kept.")] = 0.0,
    points: Annotated[int, typer.Option(min=2, help="With --methods: settings of each method, along its front.")] = 8,
    timed: Annotated[int, typer.Option(min=0, help="With --methods: items on the clock; 0 measures no time.")] = 24,
    preset: options.Preset = None,
    beams: options.Beams = 1,
    official: Annotated[
        bool, typer.Option("--official", help="Captions: figures of the official scorers too (exitwise[scorers], and Java).")
    ] = False,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = False,
    add_caption: options.AddCaption = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 if a row was left out.")] = False,
    out: Results = Path("results"),
    seed: options.Seed = 0,
    as_object: options.Json = False,
) -> None:
    """Judge a model on your own data: a unified model's exits, or with --methods every method that fits, side by side.

    Give --exits to judge exits that you saved; otherwise thresholds are chosen
    on --calibration. One JSON run goes to --out; `exitwise report` draws it.

    With --methods, every method that fits MODEL (the unified one, or what
    AutoModelForSequenceClassification loads) is run at several settings that
    are chosen on the split `calibration` and judged on `test`: fronts of
    quality against cost, the area under each, paired tests, a recommendation.
    Stop it at any time; the same command goes on. A method that does not fit
    is named with its reason.

    \b
    FOLDER holds images/ and a *.jsonl with one row a line:
      {"image": "a.jpg", "captions": ["a dog", "a brown dog"]}
      {"image": "b.png", "sentence": "There is a box.", "label": "true"}
      {"image": "c.jpg", "hypothesis": "A dog runs.", "label": "neutral"}

    A language model continues the prompts of a file (Spec-Bench, EAGLE, GSM8K,
    HumanEval, rows with "prompt", or a .txt) by each method in turn, beside
    its own `generate`, `assistant_early_exit` and, where it is installed, the
    package economize. Stop it at any time; the same command goes on.

    \b
    FOLDER of a classifier holds calibration.jsonl and test.jsonl (or *.tsv):
      {"text": "a fine film", "label": "positive"}

    \b
    Examples:
      exitwise bench --task caption --data pictures --split test --skip-bad
      exitwise bench --task caption --data pictures --official
      exitwise bench shipped --methods all --task answer --data pictures
      exitwise bench my_classifier --methods all --data reviews --exits exits
      exitwise bench SmolLM2.gguf --methods layerskip,soft --data prompts.jsonl
                     --set layerskip.depth=6 --set soft.decoder=0.9
    """
    from ..errors import KnobError
    from .loading import writes_text

    named = subject or model
    if official and methods is not None:
        raise KnobError("--official is for one model's captions. Leave it out with --methods, which compares by CIDEr-D.")
    asked = Asked(named, task and task.value, data, split, calibration, limit, skip_bad, add_caption, beams, seed)
    if methods is not None and writes_text(named):
        from . import continuing

        wanted = continuing.Asked(named, data, methods, tuple(exits or ()), tuple(knobs or ()), adapter, tokens, limit, skip_bad)
        continuing.compare(wanted, out, as_object)
    elif methods is not None:
        _compared(asked, methods, exits or [], {"keep": keep, "margin": margin, "points": points, "timed": timed}, preset, out, as_object)
    else:
        _judged(asked, _one(exits), {"keep": keep, "preset": preset, "official": official}, strict, out, as_object)


def _one(exits: list[str] | None) -> Path | None:
    """The one folder of exits that is judged as it is. Raises KnobError for several."""
    from ..errors import KnobError

    if exits is not None and len(exits) > 1:
        raise KnobError(f"--exits was given {len(exits)} times. Several are for --methods; without it, give one folder.")
    return Path(exits[0]) if exits else None


def _compared(asked: Asked, methods: str, exits: list[str], wish: dict[str, Any], preset: str | None, out: Path, as_object: bool) -> None:
    """`bench --methods`."""
    from ..bench.contest import Wish
    from ..errors import KnobError
    from .comparing import compare, say

    if preset is not None:
        raise KnobError("--preset is for one method. Leave it out with --methods.")
    if not 0 < wish["keep"] <= 1:
        raise KnobError(f"--keep {wish['keep']} is not a share. Allowed: above 0, at most 1.")
    record = compare(asked, methods, exits, Wish(**wish, seed=asked.seed), out)
    if as_object:
        as_json(record)
    else:
        say(record, out)


def _judged(asked: Asked, exits: Path | None, wish: dict[str, Any], strict: bool, out: Path, as_object: bool) -> None:
    """`bench` of the unified model's exits. wish: keep, preset, official."""
    from .. import methods
    from ..errors import KnobError
    from .loading import unified, where

    if asked.task is None:
        raise KnobError("The task is not said. Give --task caption or answer; or compare methods on a classifier with --methods all.")
    methods.load("mue").preset(wish["preset"])
    if exits is not None and wish["preset"] is not None:
        raise KnobError(f"--exits has its settings with it, so --preset {wish['preset']} says them twice. Leave one of them out.")
    own = None if asked.model == "shipped" else asked.model
    if own is None:
        where(asked.model)
    else:
        unified(asked.model, "bench")
    from tqdm.auto import tqdm

    from ..bench import captioned, table
    from ..bench.choosing import telling
    from ..bench.measure import judge

    with tqdm(desc=asked.task, unit="step", file=sys.stderr, mininterval=0.5) as bar:
        record = judge(
            asked.task, asked.data, model=own, exits=exits, split=asked.split, calibration=asked.calibration, limit=asked.limit,
            skip_bad=asked.skip_bad, add_caption=asked.add_caption, out=out, seed=asked.seed, beams=asked.beams, **wish,
            tick=telling(bar, f"{asked.task}: "),
        )  # fmt: skip
    skipped = record["task"]["skipped"]
    if as_object:
        as_json(record)
    else:
        show_table(table.render(record, 80))
        if record["task"]["kind"] == "caption":
            show_table(captioned.render(record, 80))
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
    runs = [run for run in record.latest(results) if (run.get("rows") or run.get("contest")) and run.get("task")]
    if not runs:
        raise InputError(f"{results} holds no finished run with a table. Make one with `exitwise demo` or `exitwise bench`.")
    page = write(runs, out or results / "report.html")
    if as_object:
        as_json({"report": str(page), "runs": [run["name"] for run in runs]})
    else:
        show(f"{len(runs)} runs drawn: {page}")
