"""One question to any model: the unified model as the benchmark asks it, others by their own processor, generation or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..engine import Engine
from ..errors import InputError
from ..trace import Trace

if TYPE_CHECKING:
    from ..bench.ask import Asker
    from ..bench.tasks import Item

LONGEST = 20


@dataclass(frozen=True)
class Question:
    """What is asked. candidates: the answers to choose among; none lets the model write."""

    kind: str
    image: Path | None = None
    prompt: str | None = None
    candidates: tuple[str, ...] = ()
    beams: int = 1
    longest: int = LONGEST


@dataclass(frozen=True)
class Reply:
    """What was said, with the depth of each token that was written, and what ran."""

    text: str
    tokens: list[tuple[str, int]]
    trace: Trace


def ask(engine: Engine, processor: Any, question: Question) -> Reply:
    """The reply of an engine. Raises InputError for an image or a prompt that cannot be used."""
    from ..models.ofa import OFAProcessor

    if isinstance(processor, OFAProcessor):
        return _unified(engine, processor, question)
    inputs = _inputs(processor, question)
    if not hasattr(engine.model, "generate") or not getattr(engine.model, "can_generate", lambda: True)():
        return _classified(engine, inputs)
    return _chosen(engine, processor, question, inputs) if question.candidates else _written(engine, processor, question, inputs)


def _unified(engine: Engine, processor: Any, question: Question) -> Reply:
    item = item_of(question)
    assert question.image is not None
    _opened(question.image)
    asker = asker_of(engine, processor, question)
    said = asker.ask(engine, asker.prepare([item]))
    return Reply(said.texts[0], said.tokens[0], said.trace)


def asker_of(engine: Engine, processor: Any, question: Question) -> Asker:
    """What asks the unified model."""
    from ..bench.ask import Asker

    return Asker(engine.model, processor, question.beams)


def item_of(question: Question) -> Item:
    """A question for the unified model as an item of the benchmark's kind. Raises InputError for a question that lacks something."""
    from ..bench.tasks import CAPTION_PROMPT, Item

    if question.image is None:
        raise InputError("The unified model needs an image. Give one with --image FILE.")
    if question.kind == "answer" and not question.candidates:
        raise InputError("An answer is chosen among candidates. Give them with --candidates true,false or ask for --task caption.")
    if question.kind == "answer" and question.prompt is None:
        raise InputError("An answer needs a question. Give it with --prompt 'is there a red square?'.")
    prompt = CAPTION_PROMPT if question.prompt is None else question.prompt
    candidates = question.candidates if question.kind == "answer" else ()
    return Item(question.image.name, str(question.image), question.image, prompt, (), candidates)


def _opened(path: Path) -> Any:
    from ..models.ofa.images import open_image

    return open_image(path, "the image")


def _inputs(processor: Any, question: Question) -> dict[str, Any]:
    """What the model's own processor makes of the image and the prompt."""
    given: dict[str, Any] = {}
    if question.image is not None:
        given["images"] = _opened(question.image)
    if question.prompt is not None:
        if not question.prompt.strip():
            raise InputError("The prompt is empty. Write something behind --prompt, or leave it out where the model needs none.")
        given["text"] = question.prompt
    if not given:
        raise InputError("There is nothing to ask. Give --image FILE, --prompt TEXT or both.")
    try:
        return dict(processor(**given, return_tensors="pt"))
    except (TypeError, ValueError) as problem:
        raise InputError(
            f"{type(processor).__name__} makes no inputs of {' and '.join(given)} ({problem}). Give what this model takes: "
            "--image, --prompt or both."
        ) from problem


def _written(engine: Engine, processor: Any, question: Question, inputs: dict[str, Any]) -> Reply:
    out = engine.generate(**inputs, max_new_tokens=question.longest, num_beams=question.beams, do_sample=False)
    assert out.sequences is not None
    tokenizer = getattr(processor, "tokenizer", processor)
    depths = [] if out.depth is None else out.depth[0].tolist()
    ids = out.sequences[0].tolist()
    new = ids[len(ids) - len(depths) :]
    special = set(tokenizer.all_special_ids)
    tokens = [(tokenizer.decode([t]), d) for t, d in zip(new, depths) if d > 0 and t not in special]
    return Reply(tokenizer.decode(new, skip_special_tokens=True).strip(), tokens, out.trace)


def _chosen(engine: Engine, processor: Any, question: Question, inputs: dict[str, Any]) -> Reply:
    tokenizer, config = getattr(processor, "tokenizer", processor), cast(Any, engine.model.config)
    if tokenizer.eos_token_id is None or not config.is_encoder_decoder:
        raise InputError(f"{type(engine.model).__name__} cannot choose among candidates: that needs an encoder and a decoder.")
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in question.candidates]
    out = engine.choose(ids, **inputs)
    assert out.best is not None
    best = int(out.best[0])
    depth = out.trace.depth.get("decoder")
    return Reply(question.candidates[best], [] if depth is None else [(question.candidates[best], int(depth[best].max()))], out.trace)


def _classified(engine: Engine, inputs: dict[str, Any]) -> Reply:
    """The likeliest class of a model that does not write."""
    out = engine.run(**inputs)
    logits = getattr(out, "logits", None)
    if logits is None or logits.dim() != 2:
        raise InputError(f"{type(engine.model).__name__} neither writes nor has classes. Use it in Python: Engine(model).run(**inputs).")
    best = int(logits[0].argmax())
    names = getattr(engine.model.config, "id2label", None) or {}
    return Reply(str(names.get(best, best)), [], out.trace)


def candidates_of(text: str | None) -> tuple[str, ...]:
    """('true', 'false') of 'true, false'. Raises InputError for less than two."""
    if text is None:
        return ()
    found: Sequence[str] = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(found) < 2:
        raise InputError(f"--candidates {text!r} names {len(found)}. Give two or more, with commas between them: --candidates true,false.")
    return tuple(found)
