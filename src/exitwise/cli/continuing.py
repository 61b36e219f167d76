"""`exitwise bench --methods` on a language model: every way to continue a user's prompts, in one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, KnobError
from .saying import as_json, note, show

DRAFTS = "kangaroo"


@dataclass(frozen=True)
class Asked:
    """What is compared on what. exits: NAME=FOLDER of saved engines; knobs: NAME.KNOB=VALUE."""

    model: str
    data: Path
    methods: str
    exits: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ()
    adapter: Path | None = None
    tokens: int = 64
    limit: int | None = None
    skip_bad: bool = False


def compare(asked: Asked, out: Path, as_object: bool) -> None:
    """Runs the comparison and shows it. Raises InputError for a model that is no language model, and what bad input raises."""
    from tqdm.auto import tqdm

    from ..bench import prompts
    from ..bench.choosing import telling
    from ..bench.decode import run, table, ways
    from ..bench.decoding import asked_of
    from ..pretrained import language_model
    from .loading import where
    from .measuring import show_table
    from .speaking import speaks

    names, knobs = ways.named(asked.methods), knobs_of(asked.knobs)
    if strange := sorted(set(knobs) - set(names)):
        raise KnobError(f"--set names {', '.join(strange)}, which --methods does not. It names: {', '.join(names)}.")
    if not speaks(asked.model):
        raise InputError(f"{asked.model} is no decoder-only language model, and --methods compares how one continues prompts.")
    read = prompts.read(asked.data, asked.limit, asked.skip_bad)
    speaker = language_model(where(asked.model), note=note)
    model, saved = speaker.model, _saved(speaker.model, asked)
    own, absent = ways.of_methods(model, names, knobs, saved)
    given = asked_of(speaker, read.prompts)
    rivals = [ways.assistant(model), *ways.economized(model)]
    able, failed = ways.tried([*own, *(each for each in rivals if isinstance(each, ways.Way))], given[0].inputs)
    absent += [*failed, *(each for each in rivals if isinstance(each, ways.Absent))]
    with tqdm(desc="continue", unit="prompt", file=sys.stderr, mininterval=0.5) as bar:
        about = {"model": model.config.model_type, "data": asked.data.name}
        setup = run.Setup(asked.tokens, out, "continue", about, telling(bar))
        made = run.run(model, given, [ways.plain(model), *able], absent, setup)
    if as_object:
        as_json(made)
    else:
        show_table(table.render(made))
        show(f"The run: {out / made['file']}")
    for fault in read.faults:
        note(f"left out: {fault.where}: {fault.what}")


def knobs_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{'layerskip': {'depth': 6}} of ['layerskip.depth=6']. Raises KnobError."""
    from .options import knobs

    out: dict[str, dict[str, Any]] = {}
    for full, value in knobs(list(given)).items():
        name, dot, knob = full.partition(".")
        if not dot:
            raise KnobError(f"--set {full}=... does not say of which method. With --methods write NAME.KNOB=VALUE, as layerskip.depth=6.")
        out.setdefault(name, {})[knob] = value
    return out


def _saved(model: Any, asked: Asked) -> dict[str, Any]:
    """method -> engine, of what was saved and of an adapter. Raises KnobError for one under another method's name."""
    from ..bench.decode.ways import with_adapter
    from ..engine import Engine

    found: dict[str, Any] = {} if asked.adapter is None else {DRAFTS: with_adapter(model, asked.adapter)}
    for each in asked.exits:
        name, equals, folder = each.partition("=")
        engine = Engine.load(folder if equals else each, model)
        if equals and engine.method_name != name:
            raise KnobError(f"{folder} holds exits of {engine.method_name}, not of {name}. Write {engine.method_name}={folder}.")
        found[engine.method_name] = engine
    return found
