"""`exitwise train --method`: a language model trained on a user's texts or chats as a paper trains it, saved as an ordinary checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .saying import as_json, note, show

if TYPE_CHECKING:
    from ..teach import Teaching
    from ..train.exits import Learner


@dataclass(frozen=True)
class Lesson:
    """What is trained on what, and until when. options: of the paper's training. tokens: most in a row. lora: rank of low-rank updates, 0
    for all weights. validation: a file like the data."""

    model: str
    method: str
    data: Path
    out: Path
    options: dict[str, Any]
    ends: dict[str, Any]
    rows: int = 8
    tokens: int = 512
    lora: int = 0
    validation: str | None = None
    lr: float = 1e-4
    seed: int = 0


def show_taught(lesson: Lesson, foreign: list[str], as_object: bool) -> None:
    """Trains, and says what became of it. foreign: options that were given and belong to other trainings. Raises KnobError for those."""
    from ..errors import KnobError

    if foreign:
        raise KnobError(f"{', '.join(foreign)} belong to the trainings of unified models, not to --method. Leave them out.")
    done = taught(lesson)
    if as_object:
        as_json(done)
    else:
        show(f"{done['steps']} steps on {done['tokens']} tokens, {done['seconds']:.0f} s.")
        show(f"The {done['exported']} weights are in {done['export']}.")


def taught(lesson: Lesson) -> dict[str, Any]:
    """Trains and exports; what is said about it. A folder with a checkpoint is resumed."""
    from .. import teach
    from ..train import Settings, train
    from ..train.language import texts

    ends = _ends(lesson)
    teaching = teach.load(lesson.method, **lesson.options)
    model, tokenizer = _model(lesson.model)
    samples = texts.read(lesson.data, tokenizer, lesson.tokens)
    held = texts.read(Path(lesson.validation), tokenizer, lesson.tokens) if lesson.validation is not None else None
    learner, updated = _learner(model, teaching, lesson)
    layers = len(learner.stack.layers(learner.model))
    objective: Any = teaching.objective(layers, ends.get("steps"))
    lessons = texts.Lessons(samples, lesson.rows, lesson.seed)
    options = asdict(teaching) if is_dataclass(teaching) and not isinstance(teaching, type) else dict(lesson.options)
    told = {
        "method": lesson.method,
        **options,
        "rows": lesson.rows,
        "tokens": lesson.tokens,
        "lora": lesson.lora,
        "data": texts.digest(samples),
    }
    settings = Settings(folder=lesson.out, **ends, lr=lesson.lr, seed=lesson.seed, learnt=told)
    exam = (
        None if held is None else _exam(objective, [texts.padded(held[at : at + lesson.rows]) for at in range(0, len(held), lesson.rows)])
    )
    progress = train(learner, lessons, objective, settings, exam)
    best = _best(learner, lesson.out)
    export = _export(learner, updated, teaching, lesson, tokenizer)
    said = sum(int(sample.asked.sum()) for sample in samples)
    return {
        "method": lesson.method, "samples": len(samples), "tokens": said, "steps": progress.step, "seconds": progress.used_s,
        "best": progress.best, "export": str(export), "exported": "best" if best else "last", "learnt": told,
    }  # fmt: skip


def _ends(lesson: Lesson) -> dict[str, Any]:
    """What ends the training; the warm-up is that of the run that goes on, or a tenth of the updates, at most 500. Raises KnobError."""
    from ..errors import KnobError
    from ..train.checkpoint import kept

    ends = dict(lesson.ends)
    if ends.get("patience") is not None and lesson.validation is None:
        raise KnobError("--patience counts validations. Give --validation FILE with it.")
    if ends.get("warmup") is None:
        before = kept(lesson.out).get("warmup")
        ends["warmup"] = min(500, (ends.get("steps") or 5000) // 10) if before is None else before
    return ends


def _model(name: str) -> tuple[Any, Any]:
    """(model, tokenizer). Raises CheckpointError, and FamilyError for a model that does not write."""
    from ..errors import FamilyError
    from .loading import model_of, processor_of

    model = model_of(name)
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "generate") or model.get_output_embeddings() is None:  # type: ignore[operator]
        raise FamilyError(
            f"{type(model).__name__} is not a decoder-only language model, which --method trains. Give --task or a recipe for it."
        )
    found = processor_of(name, model)
    return model, getattr(found, "tokenizer", found)


def _learner(model: Any, teaching: Teaching, lesson: Lesson) -> tuple[Learner, Any]:
    """The model, with what is trained besides it and a read-out for every depth; and its low-rank updates, or None."""
    import torch

    from .. import families
    from ..errors import KnobError
    from ..train.exits import Learner
    from ..train.language import lora, reading

    _, family = families.of(model)
    stack = next(s for s in family.stacks_of(model) if s.kind == "decoder")
    layers = len(stack.layers(model))
    torch.manual_seed(lesson.seed)
    exits = teaching.exits(model, layers)
    if family.readout is None:
        family = replace(family, readout=reading.readout_of(model, stack))
    if lesson.lora and teaching.frozen:
        raise KnobError(f"The training {lesson.method} freezes the model, so that there is nothing for --lora to update. Leave it out.")
    updated = lora.with_lora(model, lesson.lora) if lesson.lora else None  # in place: the family still finds its layers
    learner = Learner(model, family, exits, teaching.frozen)
    if updated is not None:
        lora.only_updates(model)
    return learner, updated


def _exam(objective: Any, batches: list[Any]) -> Any:
    """The mean of what the objective says of held-out batches."""

    def judge(learner: Any) -> dict[str, float]:
        told = [objective(learner, batch) for batch in batches]
        return {name: sum(float(each[name]) for each in told) / len(told) for name in told[0]}

    return judge


def _best(learner: Learner, out: Path) -> bool:
    """Puts the best weights back, where a validation kept some."""
    from safetensors.torch import load_file

    best = out / "best.safetensors"
    if best.is_file():
        learner.load_state_dict(load_file(best), strict=False)
    return best.is_file()


def _keep(learner: Learner, teaching: Teaching, folder: Path) -> None:
    """What was trained beside a frozen model: an engine of the method that decodes with it, where one does, or the training's own form."""
    from ..engine import Engine

    made_by = learner.exits.made_by
    if not made_by:
        return teaching.keep(learner.exits, folder)
    layers = len(learner.stack.layers(learner.model))
    path = Engine(learner.model, made_by, exits=learner.exits, **teaching.settings(layers)).save(folder)
    note(f"Next: exitwise run MODEL --exits {path.parent} --set decoder=0.8 --prompt ...")


def _export(learner: Learner, updated: Any, teaching: Teaching, lesson: Lesson, tokenizer: Any) -> Path:
    """OUT/export: the model as an ordinary checkpoint, or what was trained beside a frozen one."""
    from ..train.language import lora

    folder, model = lesson.out / "export", learner.eval().model
    folder.mkdir(parents=True, exist_ok=True)
    if teaching.frozen:
        _keep(learner, teaching, folder)
        note(f"The model itself was not changed: {folder} holds only what was trained beside it.")
        return folder
    ordinary: Any = model if updated is None else lora.merged(updated)
    ordinary.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
