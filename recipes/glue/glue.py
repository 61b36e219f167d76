"""GLUE with an encoder of one's own: fine-tunes it, trains the exits of every method, and measures what they save; stopped, it goes on.

Run from the project's folder: python recipes/glue/glue.py MODEL_FOLDER --task sst2 --epochs 2
MODEL_FOLDER is what `from_pretrained` reads. The rows are looked for in .data/glue; checkpoints go to .data/glue-TASK, one run to results/,
its figures to results/summary.json.
Thresholds are chosen on rows cut off the training set; the figures are of the official dev set, which nothing was chosen on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from glue_data import TASKS, Encoded, parted, read
from glue_judge import book, chosen, live, timed
from glue_learn import EPOCHS, TUNINGS, School, full_answers, trained, tuned

from exitwise import Engine
from exitwise.bench import record
from exitwise.bench.schooling import AUTO
from exitwise.errors import InputError
from exitwise.heads import READS

KEEP = 0.99


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def school_for(given: argparse.Namespace) -> tuple[School, dict[str, Encoded]]:
    """The classifier's maker and the three sets of rows."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    task = TASKS[given.task]
    rows = read(given.task, given.data, "train")
    learn, held = parted(rows, min(500, len(rows) // 10), given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    parts = {"train": learn, "calibration": held, "dev": read(given.task, given.data, "dev")}
    sets = {name: Encoded(part, tokenizer, task.longest) for name, part in parts.items()}

    def make() -> Any:
        set_seed(given.seed)
        return AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(task.labels))

    return School(make, sets["train"], given.work / f"glue-{given.task}", given.epochs, given.reads, given.seed, given.soup), sets


def begun(folder: Path, asked: dict[str, Any]) -> None:
    """Notes what a folder was begun with. Raises InputError if it was begun with something else, whose checkpoints must not be taken."""
    file = folder / "asked.json"
    if file.exists() and (before := json.loads(file.read_text(encoding="utf-8"))) != asked:
        raise InputError(f"{folder} was begun with {before}, and now {asked} is asked. Delete it, or give another --work.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked), encoding="utf-8")


def judge(engine: Engine, sets: dict[str, Encoded], given: argparse.Namespace, full: dict[str, float]) -> dict[str, Any]:
    """Both fronts, the chosen threshold live on dev, and the controls on dev."""
    score, (stream,) = TASKS[given.task].score, engine.layers
    books = {name: book(engine, sets[name]) for name in ("calibration", "dev")}
    fronts = {name: found.front(score) for name, found in books.items()}
    point = chosen(fronts["calibration"], KEEP * full["calibration"])
    found = live(engine.with_settings(**{stream: point["threshold"]}), sets["dev"], score)
    return {
        "calibrated": point, "live": found, "fronts": fronts, "kept": found["score"] / full["dev"] if full["dev"] else 0.0,
        "in_hindsight": chosen(fronts["dev"], KEEP * full["dev"]),
        "oracle": books["dev"].oracle(score), "static": books["dev"].static(score),
    }  # fmt: skip


def measure(run: dict[str, Any], given: argparse.Namespace, school: School, sets: dict[str, Encoded]) -> None:
    """Every method, then the best one's time; fills in the run."""
    score, base = TASKS[given.task].score, tuned(school)
    full = {name: score(full_answers(base, sets[name]), sets[name].labels) for name in ("calibration", "dev")}
    run["full"] = {**full, "macs": live(Engine(base, "never"), sets["dev"], score)["macs"]}
    tell(f"{given.task}: full depth scores {full['dev']:.2f} on dev, {full['calibration']:.2f} on the calibration rows")
    run["methods"], engines = {}, {}
    for name in EPOCHS:
        model, exits = trained(school, base, name)
        engines[name] = Engine(model, name, exits=exits)
        judged = school.folder / name / "judged.json"
        if not judged.exists():
            found = judge(engines[name], sets, given, full)
            found["macs_saved"] = 1 - found["live"]["macs"] / run["full"]["macs"]
            judged.write_text(json.dumps(found), encoding="utf-8")
        found = run["methods"][name] = json.loads(judged.read_text(encoding="utf-8"))
        tell(f"{name}: depth {found['live']['depth']:.2f}, keeps {found['kept']:.4f}, saves {found['macs_saved']:.3f} of the MACs")
    best = min(run["methods"], key=lambda name: run["methods"][name]["calibrated"]["depth"])  # chosen on the calibration rows
    point = run["methods"][best]["calibrated"]
    engine = engines[best].with_settings(**dict.fromkeys(engines[best].layers, point["threshold"]))
    run["best"] = best
    run["timing"] = [timed(engine, sets["dev"], size, most, given.repeats) for size, most in ((1, 64), (32, 512))]
    run["summary"] = summary(run, given.task)


def summary(run: dict[str, Any], task: str) -> dict[str, float]:
    """The flat figures of the best method, which was chosen on the calibration rows."""
    best, (one, many) = run["methods"][run["best"]], (t["saved"] for t in run["timing"])
    out = {
        f"glue/{task}/full": run["full"]["dev"], f"glue/{task}/kept_at_99": best["kept"],
        f"glue/{task}/macs_saved_at_99": best["macs_saved"],
        f"glue/{task}/wallclock_saved_batch1": one, f"glue/{task}/wallclock_saved_batch32": many,
    }  # fmt: skip
    beside = f"{'run' if task == 'sst2' else f'glue/{task}'}/batch32_over_batch1"
    return {**out, beside: many / one} if one > 0 else out


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Reads the arguments, trains and measures, writes one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a pretrained encoder and its tokenizer")
    parser.add_argument("--task", choices=sorted(TASKS), default="sst2")
    parser.add_argument("--epochs", type=float, default=2.0, help="of the fine-tuning; exits take shares of it")
    parser.add_argument("--soup", type=int, default=1, choices=range(1, len(TUNINGS) + 1), help="fine-tunings whose weights are averaged")
    parser.add_argument("--reads", default=AUTO, choices=(AUTO, *READS), help="what exits read: the first token, or the mean of all")
    parser.add_argument("--data", type=Path, default=Path(".data/glue"))
    parser.add_argument("--work", type=Path, default=Path(".data"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    school, sets = school_for(given)
    begun(school.folder, {"model": str(given.model), "epochs": given.epochs, "reads": given.reads, "seed": given.seed, "soup": given.soup})
    config = {
        "task": given.task,
        "epochs": given.epochs,
        "soup": given.soup,
        "reads": given.reads,
        "keep": KEEP,
        "rows": {name: len(rows) for name, rows in sets.items()},
    }
    with record.run(given.out, f"glue-{given.task}", config, given.seed) as run:
        measure(run, given, school, sets)
    record.summarise(given.out, run["summary"])
    print(json.dumps(run["summary"], indent=1))
    return run


if __name__ == "__main__":
    main()
