"""Who takes part in a comparison: each method with its exits, in all its measures; and who does not fit, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import methods
from ..engine import Engine
from ..errors import ExitwiseError, InputError
from ..heads import Exits
from ..kept import SETTINGS_FILE
from ..method import Method
from .spans import ruled
from .subjects import Subject

FULL = "never"
MEASURE = "measure"


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a method on this model. name: its own, with its measure where it has several."""

    name: str
    engine: Engine
    note: str = ""

    @property
    def control(self) -> bool:
        """Whether it only shows what others are worth."""
        return self.engine.method.control


@dataclass(frozen=True)
class Unfit:
    """A method that does not take part, and why."""

    name: str
    reason: str


def named(asked: str) -> list[str]:
    """The methods behind --methods: 'all', or names with commas. Raises UnknownName, InputError."""
    names = methods.names() if asked.strip() == "all" else list(dict.fromkeys(n.strip() for n in asked.split(",") if n.strip()))
    if not names:
        raise InputError("--methods names no method. Write --methods all, or names with commas; `exitwise methods` lists them.")
    for name in names:
        methods.load(name)
    return [name for name in names if name != FULL]


def given_exits(values: Sequence[str], model: Any) -> dict[str, Engine]:
    """method -> the engine that was saved for it. values: NAME=FOLDER, or a folder of saved engines (or one of them).

    Raises InputError for a folder that holds none, CheckpointError and FingerprintError for exits that do not fit.
    """
    found: dict[str, Engine] = {}
    for value in values:
        name, equals, place = value.partition("=")
        folder = Path(place if equals else value)
        folders = [folder] if (folder / SETTINGS_FILE).is_file() else sorted(f.parent for f in folder.glob(f"*/{SETTINGS_FILE}"))
        if not folders:
            raise InputError(f"{folder} holds no {SETTINGS_FILE}, and no folder in it does. Give what `exitwise train --method` wrote.")
        for each in folders:
            engine = Engine.load(each, model)
            if equals and engine.method_name != name:
                raise InputError(f"{each} holds exits of {engine.method_name}, not of {name}. Write {engine.method_name}={each}.")
            found[engine.method_name] = engine
    return found


def entries(subject: Subject, names: Sequence[str], exits: Mapping[str, Engine]) -> tuple[list[Entry], list[Unfit]]:
    """Those that fit the subject's model, and the others."""
    able: list[Entry] = []
    unable: list[Unfit] = []
    for name in names:
        for label, knobs in _variants(name):
            found = _entry(subject, name, label, knobs, exits.get(name))
            (able if isinstance(found, Entry) else unable).append(found)  # type: ignore[arg-type]
    return able, unable


def _variants(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, knobs) for each measure that the method has; one where it has none."""
    knob = next((k for k in methods.load(name).knobs if k.name == MEASURE), None)
    return [(name, {})] if knob is None else [(f"{name} ({choice})", {MEASURE: choice}) for choice in knob.choices or ()]


def _entry(subject: Subject, name: str, label: str, knobs: dict[str, Any], saved: Engine | None) -> Entry | Unfit:
    method, model = methods.load(name), subject.model
    own = {**subject.knobs([knob.name for knob in method.knobs]), **knobs}
    try:
        base = Engine(model, name, **own)
        lacking = _lacking(base, method, saved.exits if saved is not None else None)
        if lacking:
            return Unfit(label, lacking)
        engine = base if saved is None else Engine(model, name, exits=saved.exits, **own)
        streams = ruled(engine)
        if method.calibrated and not streams:
            return Unfit(label, f"it leaves at {', '.join(method.calibrated)}, but nothing of {', '.join(base.layers)} gives it an answer")
        subject.outcome(engine.with_settings(**dict.fromkeys(streams, 0.5)), "calibration", first=1)  # asks what a plan alone does not
    except ExitwiseError as problem:
        return Unfit(label, str(problem))
    note = "the model's own head reads its exits" if method.exits is not None and engine.exits is None else ""
    return Entry(label, engine, note)


def _lacking(base: Engine, method: Method, exits: Exits | None) -> str:
    """What a method needs and was not given; nothing if nothing. A decoder's own head may read its exits, a classifier's may not."""
    if method.exits is None or exits is not None or not set(base.layers) & set(method.calibrated):
        return ""
    wants = method.exits(base.shape())
    if not len(wants.heads) and base.shape().classes == 0:
        return ""  # the rule itself says what it needs
    return (
        f"it needs exits that were trained for this model, and none were given. Train them with "
        f"`exitwise train MODEL --method {base.method_name} --data D --out E`, then give --exits {base.method_name}=E/{base.method_name}"
    )
