"""What a paper's file must say: its knobs, and the plan that they make for the streams of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import KnobError, unknown
from .run.walk import Plan

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Knob:
    """One option of a method. low and high are inclusive; choices lists all allowed values; None is allowed where the default is None."""

    name: str
    default: Any
    about: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None

    def check(self, value: Any) -> None:
        """Raises KnobError if the value is not allowed."""
        if value is None and self.default is None:
            return
        if self.choices is not None:
            if value not in self.choices:
                raise KnobError(f"{self.name}={value!r} is not allowed. Allowed: {', '.join(map(repr, self.choices))}.")
            return
        if self.low is None and self.high is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise KnobError(f"{self.name}={value!r} is not a number. {self.about}")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise KnobError(f"{self.name}={value} is outside {self.low}..{self.high}. {self.about}")


@dataclass(frozen=True)
class Method:
    """A method as a value. plan: (settings, stream -> layers of its stack) -> Plan. calibrated: the knobs that calibration chooses.

    presets: name -> settings, for what a paper says or its code does. A preset 'x-answer' is 'x' for answers that one pass decides.
    """

    paper: str
    about: str
    plan: Callable[[Settings, Mapping[str, int]], Plan]
    knobs: tuple[Knob, ...] = ()
    calibrated: tuple[str, ...] = ()
    presets: Mapping[str, Settings] = field(default_factory=dict, hash=False)

    def preset(self, name: str | None, kind: str | None = None) -> dict[str, Any]:
        """The settings of a preset, for a kind of task where it has some of its own; none for None. Raises UnknownName."""
        if name is None:
            return {}
        special = f"{name}-{kind}"
        if name not in self.presets:
            raise unknown("preset", name, self.presets or ("none for this method",))
        return dict(self.presets[special if special in self.presets else name])

    def settings(self, given: Settings) -> dict[str, Any]:
        """All knobs, defaults filled in and checked. Raises UnknownName for a knob that the method does not have."""
        known = {k.name: k for k in self.knobs}
        for name in given:
            if name not in known:
                raise unknown("knob", name, known)
        out = {name: given.get(name, knob.default) for name, knob in known.items()}
        for name, value in out.items():
            known[name].check(value)
        return out
