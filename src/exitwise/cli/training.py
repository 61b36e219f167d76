"""`exitwise train`: a unified model fine-tuned on a user's data so that every layer can answer, by a recipe or by choices of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .saying import as_json, guarded, note, show
from .teaching import Lesson, show_taught

if TYPE_CHECKING:
    from ..bench.course import Course
    from ..bench.tasks import Task
    from ..train import Progress, Settings
    from ..train.recipe import Recipe
    from .loading import Unified


class LayerWeights(str, Enum):
    """How the layers' losses are weighed."""

    uniform = "uniform"
    linear = "linear"
    avg_last = "avg+last"
    last = "last"


def _list_recipes(wanted: bool) -> None:
    if wanted:
        from ..train import recipe

        for name in recipe.names():
            typer.echo(f"{name}\n    {recipe.load(name).about}")
        raise typer.Exit()


def _list_methods(wanted: bool) -> None:
    if wanted:
        from .. import teach

        for name in teach.names():
            typer.echo(f"{name}\n    {teach.about(name)}")
        raise typer.Exit()


@guarded
def train(
    model: options.Model = "shipped",
    task: Annotated[options.Kind | None, typer.Option(help="'caption' or 'answer'. A recipe knows its own.")] = None,
    data: options.Data = ...,  # type: ignore[assignment]
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Checkpoint, log and export/. A folder with a checkpoint is resumed.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="A recipe (see --recipes), or a *.toml file like them.")] = None,
    recipes: Annotated[bool, typer.Option("--recipes", help="List the recipes and end.", is_eager=True, callback=_list_recipes)] = False,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any value of a recipe, such as drop_path=0. May be repeated.")
    ] = None,
    split: options.Split = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates, instead of epochs. With seconds too: what ends first.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times that all texts (stage two: images) are seen.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Time of training.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Without it or a recipe: 0.0001.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Steps to the peak. Without it: the recipe's, or a tenth, at most 500.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Items that a device takes at a time. Without it or a recipe: 16.")] = None,
    weights: Annotated[LayerWeights | None, typer.Option(help="How the layers' losses are weighed. Without it: uniform.")] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Judge the loss (stage two: CIDEr) on this split; the best weights are exported.")
    ] = None,
    validate_every: Annotated[float, typer.Option(metavar="SECONDS", help="How often that is.")] = 600.0,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many validations without a better loss.")] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Train these exits on the model as it is; a language model: as this paper does (--methods)."),
    ] = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="List the trainings of language models and end.", is_eager=True, callback=_list_methods)
    ] = False,
    tokens: Annotated[int, typer.Option(min=2, help="With --method: most tokens in a row.")] = 512,
    lora: Annotated[int, typer.Option(min=0, metavar="RANK", help="With --method: low-rank updates by peft; 0 trains all weights.")] = 0,
    add_caption: Annotated[
        bool | None,
        typer.Option("--add-caption/--no-add-caption", help="Ask entailment with the premise in the prompt, or without."),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast.")] = False,
    seed: options.Seed = 0,
    skip_bad: options.SkipBad = False,
    as_object: options.Json = False,
) -> None:
    """Train a unified model so that every decoder layer can answer: the layer-wise loss on a folder of yours.

    Stop it at any time; the same command goes on from the last checkpoint, and
    another configuration is refused. It ends with OUT/export, which every other
    command takes as MODEL. Several devices: accelerate launch -m exitwise train.

    With --method the model stays as it is, and only the exits of these methods
    are trained, each for --steps or --seconds (300 without either); MODEL may
    then be a classifier of texts, with FOLDER/train.jsonl or train.tsv. Each
    method's engine goes to OUT/NAME, for `exitwise bench --methods`. Exits of a
    classifier read its first token, or where that hardly differs between rows
    the mean of all; --set reads=first or reads=mean decides. A language
    model is trained as the paper of one method does, on texts (*.txt) or chats
    (*.jsonl), and becomes an ordinary checkpoint.

    \b
    Examples:
      exitwise train --task caption --data pictures --split train
                     --validation val --seconds 3600 --out mine
      exitwise train ofa-base --recipe mue-snli-ve --data snli_ve --out mine
                     --validation dev --set rows=2
      exitwise calibrate mine/export --task caption --data pictures
                     --split val --out exits
      exitwise train my_classifier --method deebert,pabee --data reviews
                     --out exits
      exitwise train smollm2 --method soft --data chats.jsonl --steps 500
                     --set depths=[8,16,24,30] --out sorted
    """
    ends = {"steps": steps, "seconds": seconds, "warmup": warmup, "patience": patience, "validate_every_s": validate_every, "bf16": bf16}
    from ..errors import KnobError
    from .loading import writes_text

    if method is not None and writes_text(model):
        foreign = {
            "--task": task, "--recipe": recipe, "--split": split, "--epochs": epochs, "--weights": weights, "--add-caption": add_caption
        }  # fmt: skip
        lesson = Lesson(model, method, data, out, options.knobs(values), ends, rows or 8, tokens, lora, validation, lr or 1e-4, seed)
        return show_taught(lesson, [name for name, value in foreign.items() if value is not None], as_object)
    if method is not None:
        asked = Asked(model, data, split, validation, skip_bad, seed)
        refused = {"recipe": recipe, "weights": weights, "epochs": epochs, "validation": validation, "bf16": bf16 or None,
                   "lora": lora or None}  # fmt: skip
        how = options.knobs(values)
        refused |= {f"set {name}": True for name in how if name != "reads"}
        _taught(method, asked, task and task.value, {"steps": steps, "seconds": seconds, "lr": lr, **how}, refused, out, as_object)
        return
    if lora:
        raise KnobError("--lora is for language models. Leave it out, or give --method with one.")
    flags = {"lr": lr, "rows": rows, "epochs": epochs, "weights": weights and weights.value, "add_caption": add_caption}
    chosen = _recipe(recipe, task and task.value, values, {name: value for name, value in flags.items() if value is not None})
    asked = Asked(model, data, split, validation, skip_bad, seed)
    done = _trained(chosen, asked, out, ends)
    if done is None:
        return
    if as_object:
        as_json(done)
    else:
        show(f"{done['steps']} steps, {done['seconds']:.0f} s. The {done['exported']} weights are in {done['export']}.")
        show(f"Next: exitwise calibrate {done['export']} --task {chosen.task} --data {data} --out {out / 'exits'}")


def _taught(names: str, asked: Asked, task: str | None, ends: dict[str, Any], refused: dict[str, Any], out: Path, as_object: bool) -> None:
    """`train --method`. Raises KnobError for options of the other kind of training."""
    from ..bench.schooling import Schooling
    from ..errors import KnobError
    from .comparing import Asked as Compared
    from .comparing import teach

    if wrong := [f"--{name}" for name, value in refused.items() if value]:
        raise KnobError(f"{', '.join(wrong)} is for training the model. Leave it out with --method, which leaves the model as it is.")
    if ends["steps"] is None and ends["seconds"] is None:
        ends["seconds"] = 300.0
    given = Compared(asked.model, task, asked.data, asked.split, skip_bad=asked.skip_bad, seed=asked.seed)
    done = teach(given, names, Schooling(**ends, seed=asked.seed), out)
    if as_object:
        as_json({"exits": done})
        return
    for name, folder in done.items():
        show(f"{name}: {folder}")
    said = "" if task is None else f" --task {task}"
    show(f"Next: exitwise bench {asked.model} --methods all{said} --data {asked.data} --exits {out}")


@dataclass(frozen=True)
class Asked:
    """What is trained on what."""

    model: str
    data: Path
    split: str | None
    validation: str | None
    skip_bad: bool
    seed: int

    def task(self, recipe: Recipe, split: str | None) -> Task:
        """The items of a split, asked as the recipe says."""
        from ..bench import tasks

        return tasks.load(str(recipe.task), self.data, split, self.skip_bad, add_caption=recipe.add_caption, usual="train")


def _recipe(name: str | None, task: str | None, values: list[str] | None, flags: dict[str, Any]) -> Recipe:
    """The recipe with everything that was said on the command line; its task is set. Raises KnobError."""
    from ..errors import KnobError
    from ..train.recipe import Recipe, load

    found = load(name) if name is not None else Recipe()
    if found.task and task and found.task != task:
        raise KnobError(f"The recipe {name} is for the task {found.task}; --task says {task}. Leave --task out.")
    set_here = {key: list(value) if isinstance(value, tuple) else value for key, value in options.knobs(values).items()}
    if twice := sorted(set_here.keys() & flags.keys()):
        raise KnobError(f"{', '.join(twice)} was given twice, as an option and with --set. Leave one of them out.")
    found = found.changed({**({"task": task} if task else {}), **set_here, **flags})
    if found.task is None:
        raise KnobError("The task is not said. Give --task caption or answer, or a --recipe.")
    return found


def _trained(recipe: Recipe, asked: Asked, out: Path, ends: dict[str, Any]) -> dict[str, Any] | None:
    """Trains and exports; what is said about it, by the first of several processes."""
    import torch
    from accelerate import PartialState

    from ..errors import KnobError
    from ..models.ofa.tuning import tune
    from ..train import train as fit
    from .loading import unified

    if ends["patience"] is not None and asked.validation is None:
        raise KnobError("--patience counts validations. Give --validation SPLIT with it.")
    if ends["steps"] is None and ends["seconds"] is None and recipe.epochs is None:
        raise KnobError("the training has no end. Give --steps, --epochs, --seconds or a --recipe.")
    state = PartialState(cpu=not torch.cuda.is_available())
    lessons = asked.task(recipe, asked.split)
    held = asked.task(recipe, asked.validation) if asked.validation is not None else None
    pair = unified(asked.model, "train")
    tune(pair.model, **{name: getattr(recipe, name) for name in TUNED})
    course = _course(recipe, lessons, pair, asked.seed, (state.process_index, state.num_processes))
    settings = _settings(recipe, course, asked, out, ends)
    exam = None if held is None else _course(recipe, held, pair, asked.seed, (0, 1)).validate
    if state.is_main_process:
        for fault in lessons.faults:
            note(f"left out: {fault.where}: {fault.what}")
    progress = fit(pair.model, course.batch, course.objective, settings, exam)
    return _body(recipe, lessons, progress, out, _export(pair, out)) if state.is_main_process else None


TUNED = ("decomposed", "dropout", "attention_dropout", "drop_path", "freeze_embeddings", "train_stem", "checkpoint_layers")


def _course(recipe: Recipe, task: Task, pair: Unified, seed: int, share: tuple[int, int]) -> Course:
    from ..bench.course import Course
    from ..bench.rewarded import Rewarded

    return (Rewarded if recipe.reward else Course)(task, pair.processor, recipe, seed, share)


def _settings(recipe: Recipe, course: Course, asked: Asked, out: Path, ends: dict[str, Any]) -> Settings:
    """The loop's settings: of the recipe, and of what ends the run."""
    from ..train import Settings
    from ..train.checkpoint import kept

    processes = course.share[1]
    steps = ends["steps"] or recipe.updates(course.visits(), processes)
    warmup = ends["warmup"]
    if warmup is None:
        warmup = kept(out).get("warmup")  # a run that goes on may be given more steps
    if warmup is None and recipe.warmup_share is not None and steps:
        warmup = round(recipe.warmup_share * steps)
    if warmup is None:
        warmup = min(500, steps // 10) if steps else 500
    shared = {name: getattr(recipe, name) for name in ("lr", "schedule", "betas", "weight_decay", "clip")}
    learnt = {name: value for name, value in recipe.to_dict().items() if name not in {*shared, "batch", "epochs", "warmup_share"}}
    data = {"split": course.task.split, "items": len(course.task.items), "data": _digest(course.task), "devices": processes}
    return Settings(
        folder=out, **{**ends, "steps": steps, "warmup": warmup}, **shared, seed=asked.seed, accumulate=course.accumulate,
        learnt={**learnt, **data},
    )  # fmt: skip


def _digest(task: Task) -> str:
    """Twelve letters that tell these items from others."""
    from hashlib import sha256

    seen = sha256()
    for item in task.items:
        seen.update(repr((item.name, item.prompt, item.references, item.candidates)).encode())
    return seen.hexdigest()[:12]


def _export(pair: Unified, out: Path) -> bool:
    """Writes OUT/export, with the best weights where a validation kept some; whether it did."""
    from safetensors.torch import load_file

    best = out / "best.safetensors"
    if best.is_file():
        pair.model.load_state_dict(load_file(best), strict=False)
    pair.model.eval().save_pretrained(out / "export")
    pair.processor.save_pretrained(out / "export")
    return best.is_file()


def _body(recipe: Recipe, lessons: Task, progress: Progress, out: Path, best: bool) -> dict[str, Any]:
    return {
        "task": recipe.task,
        "items": len(lessons.items),
        "skipped": len(lessons.faults),
        "steps": progress.step,
        "seconds": progress.used_s,
        "best": progress.best,
        "history": progress.history,
        "export": str(out / "export"),
        "exported": "best" if best else "last",
        "recipe": recipe.to_dict(),
    }
