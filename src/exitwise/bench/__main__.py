"""`make bench`: every measured claim of the project, a run each under results/, and last the flat results/summary.json.

Judged on the embedded sample, and, where .data/ holds them, on the held-out splits of Flickr8k and NLVR that
recipes/shipped/splits.json names.
A step that fails is recorded and does not stop the others. `--only ofa` means ofa-speed, ofa-load and ofa-parts; `--only decode` all
that is measured on a language model, which --model or EXITWISE_LANGUAGE_MODEL names.
Run: python -m exitwise.bench [--only demo,caption,answer,speed,front,frugal,promise,rivals,ofa,training,decode] [--repeats 9]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..engine import Engine
from ..models import shipped_path
from . import contest_table, decoding, fronts, ofa, promise, record, recording, rivals, speed, table, tasks, training
from .ask import Asker, load_pair
from .demo import KEEP
from .measure import Setup, judge_on

HELDOUT = Path(".data/heldout")
LEDGERS = Path(".data/ledgers")
RIVALS = Path(".data/rivals")
# Of the layers; the dearest static depths below are 0.29 (two layers of the image and of the decoder), and 0.25 below that.
BUDGETS = {"answer": (0.3, 0.29), "caption": (0.33,)}
Summary = dict[str, float | None]


def demo(out: Path, summary: Summary) -> None:
    """Both tasks on the embedded sample, in a process of its own so that the peak memory is the demo's."""
    import subprocess

    done = subprocess.run([sys.executable, "-m", "exitwise", "demo", "--out", str(out)], capture_output=True, text=True, check=True)
    print(done.stdout)
    runs = record.latest(out, "demo-")
    for run in runs:
        _figures(summary, f"demo/{run['task']['kind']}", run)
    summary["demo/peak_gib"] = max(run["peak_gib"] for run in runs)


def held(kind: str, folder: Path, out: Path, summary: Summary, beams: int = 1) -> None:
    """The shipped exits, which were chosen on calibration.jsonl, judged on test.jsonl. No gallery: that data may not be published."""
    exits = shipped_path() / "exits" / kind
    setup = Setup(exits=exits, out=out, name=f"heldout-{kind}", keep=KEEP[kind], beams=beams, timed=40, gallery=0, tick=_tell)
    run = judge_on(tasks.load(kind, folder, "test"), None, f"held-out {kind}", setup)
    print(table.render(run))
    _figures(summary, f"mue/{kind}", run)


def frugal(kind: str, folder: Path, out: Path, summary: Summary) -> None:
    """A task at costs at which one depth for all no longer does: what the rule itself adds. Chosen on calibration.jsonl."""
    task, chosen_on = (tasks.load(kind, folder, split) for split in ("test", "calibration"))
    for budget in BUDGETS[kind]:
        name = f"frugal-{kind}-{round(100 * budget)}"
        run = judge_on(task, chosen_on, f"held-out {kind}", Setup(out=out, name=name, budget=budget, timed=40, gallery=0, tick=_tell))
        print(table.render(run))
        _figures(summary, f"mue/{kind}/at_{round(100 * budget)}", run)


def timing(out: Path, summary: Summary, repeats: int) -> None:
    """Realised share and overhead on a model of OFA-Base's shape, random weights."""
    model = speed.base_model()
    for rows, depths, key in ((1, [(2, 6, 2)], "run/realised_batch1"), (16, list(speed.MIXED), "run/realised_batch16")):
        with record.run(out, key.replace("/", "-"), {"shape": "ofa-base, 480 px", "tokens": 16, "depths": depths}, 0) as run:
            run.update(speed.realised(rows, depths, repeats if rows == 1 else max(3, repeats // 2), model=model))
            summary[key] = run["realised"]
    with record.run(out, "run-overhead", {"shape": "ofa-base, 480 px", "tokens": 16}, 0) as run:
        run.update(speed.overhead(repeats, model=model))
        summary["run/overhead_never"] = run["overhead"]


def whole_front(out: Path, summary: Summary, repeats: int) -> None:
    """A front of 20,000 settings from a ledger of 10,000 rows, on one core: the slower of two shapes."""
    with record.run(out, "calibrate-front", {"rows": 10_000, "exits": 12, "threads": 1}, 0) as run:
        run["shapes"] = fronts.seconds(repeats=repeats)
        summary["calibrate/seconds_20000"] = max(shape["median_s"] for shape in run["shapes"].values())


def promises(folder: Path, out: Path, summary: Summary, asked: promise.Asked) -> None:
    """The shipped model's answers on all held-out rows, recorded once under .data/ledgers, and a thousand samples of them."""
    with record.run(out, "promise-answer", {"data": "held-out answer, calibration and test", **asdict(asked)}, asked.seed) as run:
        model, processor = load_pair(None)
        engine = Engine(model, "mue", decoder_scope="last")
        items = [item for split in ("calibration", "test") for item in tasks.load("answer", folder, split).items]
        book = recording.recorded(Asker(model, processor), engine, items, LEDGERS, _tell)
        run.update(promise.simulate(book, asked, _tell))
        summary["promise/violation_rate"] = run["violation_rate"]
        summary["promise/cost_over_hindsight"] = run["cost_over_hindsight"]


def against(kinds: Sequence[str], out: Path, summary: Summary, asked: rivals.Asked) -> None:
    """MuE and its rivals on the shipped model; their exits are trained once, under .data/rivals."""
    runs = [rivals.run(kind, HELDOUT / kind, out, RIVALS, asked, _tell) for kind in kinds]
    for run in runs:
        print(contest_table.render(run))
        print(run["recommendation"])
    summary.update(rivals.summary(runs))


def figure(key: str, found: str, config: dict[str, Any], measure: Callable[[], dict[str, Any]], out: Path, summary: Summary) -> None:
    """One of the promises about OFA: a run named after its key, whose figure `found` goes into the summary."""
    with record.run(out, key.replace("/", "-"), config, 0) as run:
        run.update(measure())
        summary[key] = run[found]


def about_ofa(out: Path, summary: Summary, repeats: int) -> dict[str, Callable[[], None]]:
    """Speed at 2/6/2 with the stem, memory of loading, and the parts against the formulas: each a step of its own."""
    asked: list[tuple[str, str, str, dict[str, Any], Callable[[], dict[str, Any]]]] = [
        ("ofa-speed", "ofa/base_speedup_2_6_2", "speedup", {"shape": "ofa-base, 480 px", "tokens": 16}, lambda: ofa.speedup(repeats)),
        ("ofa-load", "ofa/load_memory_ratio", "load_memory_ratio", {"shape": "ofa-large", "file": "random, fairseq's"}, ofa.loading),
        ("ofa-parts", "ofa/parts_max_error", "parts_max_error", {"sizes": "tiny to large", "image": "2 x 3 cells"}, ofa.deviations),
    ]
    return {name: partial(figure, key, found, config, measure, out, summary) for name, key, found, config, measure in asked}


def fitting(out: Path, summary: Summary, repeats: int) -> None:
    """What the layer-wise loss costs in a training step at OFA-Tiny's shape, 480 px, the stem left out."""
    run = training.measure(out, training.Shape(), repeats)
    summary["ofa/train_time_ratio"], summary["ofa/train_memory_ratio"] = run["time_ratio"], run["memory_ratio"]


def _figures(summary: Summary, key: str, run: dict[str, Any]) -> None:
    rows = {row["key"]: row for row in run["rows"]}
    ours, kind = rows["mue"], run["task"]["kind"]
    summary[f"{key}/kept"], summary[f"{key}/etr"] = ours["kept"]["value"], ours["etr"]["streams"]
    summary[f"{key}/macs_saved"], summary[f"{key}/wallclock_saved"] = ours["macs_saved"], ours["wallclock_saved"]
    summary[f"{key}/{'cider_full' if kind == 'caption' else 'accuracy_full'}"] = rows["full"]["quality"]["value"]
    for other in ("static", "random", "joint"):
        summary[f"{key}/{other}_kept"] = rows[other]["kept"]["value"]


def _tell(what: str, last: list[str] = [""]) -> None:  # noqa: B006 - remembers the last line
    if what != last[0]:
        last[0] = what
        print(f"  {what}", file=sys.stderr, flush=True)


def steps(out: Path, summary: Summary, repeats: int, beams: int, asked: rivals.Asked) -> dict[str, Callable[[], None]]:
    """Name -> step, those whose data are here."""
    found: dict[str, Callable[[], None]] = {
        "demo": lambda: demo(out, summary),
        "speed": lambda: timing(out, summary, repeats),  # before the others, whose memory would slow the clock
        "front": lambda: whole_front(out, summary, repeats),
        **about_ofa(out, summary, repeats),
        "training": lambda: fitting(out, summary, repeats),
    }
    for kind in tasks.KINDS:
        folder = HELDOUT / kind
        if (folder / "test.jsonl").exists():
            found[kind] = partial(held, kind, folder, out, summary, beams if kind == "caption" else 1)
        else:
            print(f"{folder} is not there: its figures are left out. recipes/shipped/heldout.py writes it.", file=sys.stderr)
    here = [kind for kind in tasks.KINDS if all((HELDOUT / kind / f"{split}.jsonl").exists() for split in ("calibration", "test"))]
    found |= {f"frugal-{kind}": partial(frugal, kind, HELDOUT / kind, out, summary) for kind in here}
    if "answer" in here:
        found["promise"] = lambda: promises(HELDOUT / "answer", out, summary, promise.Asked())
    if here:
        found["rivals"] = lambda: against(here, out, summary, asked)
    return found


def main() -> int:
    """Runs the steps; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--only", help="names of steps, with commas (see above)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--beams", type=int, default=1, help="beams of the held-out captions")
    parser.add_argument("--limit", type=int, help="rivals: most items of a split, to try it out")
    parser.add_argument("--seconds", type=float, help="rivals: of training each method's exits")
    decoding.options(parser)
    given = parser.parse_args()
    summary: Summary = {}
    asked = rivals.Asked().limited(given.limit, given.seconds)
    failed = []
    spoken, missing = decoding.steps(decoding.Wish.of(given), given.out, summary, _tell)
    for reason in missing:
        print(reason, file=sys.stderr)
    for name, step in {**steps(given.out, summary, given.repeats, given.beams, asked), **spoken}.items():
        if given.only and not any(name == asked or name.startswith(f"{asked}-") for asked in given.only.split(",")):
            continue
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            step()
        except Exception as error:  # the others still run; the record of this one says why
            failed.append(name)
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
        record.summarise(given.out, summary)
        summary.clear()  # what stands in the file may be another process's by the next step
    print(json.dumps(record.summarise(given.out, {}), indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
