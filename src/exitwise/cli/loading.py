"""From what a user writes for MODEL to a model and what prepares its inputs, or to an error that says what was tried."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..engine import Engine
from ..errors import CheckpointError, InputError, KnobError
from ..pretrained import config_of, first_line, is_language_model, padding, source_of, tokenizer_of, weights_of
from .saying import note

SHIPPED = "shipped"
AUTO = (
    "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq", "AutoModelForCausalLM",
    "AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoModel",
)  # fmt: skip


def where(name: str) -> str:
    """The folder or hub name that MODEL stands for. Raises CheckpointError for the shipped model where it is not there."""
    if name != SHIPPED:
        return name
    from ..models import shipped_path

    folder = shipped_path()
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "The shipped model is not part of this installation (its folder has no config.json). Install the package with its weights, or "
            "give MODEL: a folder that save_pretrained wrote, or a name on the hub."
        )
    return str(folder)


def model_of(name: str) -> nn.Module:
    """The model in evaluation mode, float32, of the class that wrote it; an official checkpoint of OFA as it is. Raises CheckpointError."""
    import torch

    from ..models import ofa  # registers the unified model with the Auto classes

    place = where(name)
    if ofa.is_checkpoint(place):
        return ofa.load_checkpoint(place, dtype=torch.float32)[0]
    source = source_of(place)
    sensible(source.place)
    model: nn.Module = weights_of(source, _class(config_of(source)))
    return model


def processor_of(name: str, model: nn.Module, vocabulary: Path | None = None) -> Any:
    """What makes inputs of images and texts for this model. Raises CheckpointError.

    vocabulary: the folder of BPE files for an official checkpoint of OFA, where they do not lie beside it.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    from ..models import ofa

    source = where(name)
    if isinstance(model, ofa.OFAForConditionalGeneration) and ofa.is_checkpoint(source):
        beside = Path(source) if Path(source).is_dir() else Path(source).parent
        return ofa.OFAProcessor.for_config(ofa.load_tokenizer(vocabulary or beside, model.config.vocab_size), model.config)
    if vocabulary is not None:
        raise KnobError(f"--bpe is for official checkpoints of OFA; {name} has its own processor. Leave it out.")
    if is_language_model(getattr(model, "config", None)):
        tokenizer, notes = padding(tokenizer_of(source_of(source)), model)
        for each in notes:
            note(each)
        return tokenizer
    problems = []
    for kind in (AutoProcessor, AutoTokenizer, AutoImageProcessor):
        try:
            return kind.from_pretrained(source)
        except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as problem:
            problems.append(f"{kind.__name__}: {first_line(problem)}")
    raise CheckpointError(f"{source} has no processor or tokenizer that loads ({'; '.join(problems)}). Save it beside the model.")


@dataclass(frozen=True)
class Unified:
    """The unified model and its processor."""

    model: Any
    processor: Any


def unified(name: str, command: str) -> Unified:
    """The same for commands that only the unified model can do. Raises InputError for another model, with what to do."""
    from ..models.ofa import OFAForConditionalGeneration

    model = model_of(name)
    if not isinstance(model, OFAForConditionalGeneration):
        raise InputError(
            f"`exitwise {command}` is for the built-in unified model (OFA); {name} is a {type(model).__name__}. "
            f"In Python, Engine(model).calibrate(rows) and exitwise.train work with any model."
        )
    return Unified(model, processor_of(name, model))


def engine_of(
    model: nn.Module,
    method: str | None,
    exits: Path | None,
    knobs: dict[str, Any],
    preset: str | None = None,
    kind: str | None = None,
    **defaults: Any,
) -> Engine:
    """The engine that was saved, or a new one of this method (mue) and preset; then the knobs. kind: of task, for the preset.

    defaults: for knobs of a new one that has them.
    """
    if exits is not None:
        if preset is not None:
            raise KnobError(f"--exits has its settings with it, so --preset {preset} says them twice. Leave one of them out, or use --set.")
        engine = Engine.load(exits, model)
        if method not in (None, engine.method_name):
            raise KnobError(f"{exits} holds exits of {engine.method_name}, not of {method}. Leave --method out, or give other exits.")
        return engine.with_settings(**knobs) if knobs else engine
    from .. import methods

    chosen = methods.load(method or "mue")
    own = {knob.name for knob in chosen.knobs}
    settings = {**{k: v for k, v in defaults.items() if k in own}, **chosen.preset(preset, kind), **knobs}
    return Engine(model, method or "mue", **settings)


def sensible(source: str) -> None:
    """Raises CheckpointError for what is neither a folder nor can be a name on the hub; says so when the hub is asked."""
    if Path(source).exists():
        return
    if difflib.get_close_matches(source, [SHIPPED], cutoff=0.75):
        raise CheckpointError(f"No model is called {source!r}. Did you mean {SHIPPED!r}?")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(f"The folder {source} does not exist. Give a folder that save_pretrained wrote, or a name on the hub.")
    note(f"{source} is no folder here; asking the hub for it.")


def _class(config: Any) -> Any:
    """The class that the configuration names, or the first Auto class that knows it."""
    import transformers

    named = (getattr(config, "architectures", None) or [None])[0]
    found = getattr(transformers, named, None) if named else None
    if found is not None and hasattr(found, "from_pretrained"):
        return found
    for name in AUTO:
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return auto
    raise CheckpointError(f"No class of transformers builds a model of the type {config.model_type!r} ({named}).")


def writes_text(model: str) -> bool:
    """Whether MODEL is a language model on this disk."""
    return Path(model).exists() and Path(model).suffix != ".pt" and is_language_model(config_of(source_of(model)))
