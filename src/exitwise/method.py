"""What a paper's file must say: its knobs, and the plan that they make for the streams of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import KnobError, unknown
from .heads import Exits
from .reading import Reading
from .run.walk import Plan

if TYPE_CHECKING:
    from .train.exits import Objective

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
    exits: builds what the method trains, for a shape (and what `Exits.about` tells besides); None trains nothing of its own. objective:
    its training objective. frozen: the base is not trained with it. sweep: for a method without thresholds, settings of all costs, each
    with the mean depths that it has. control: it shows what others are worth, and is nothing to use.
    """

    paper: str
    about: str
    plan: Callable[[Settings, Mapping[str, int]], Plan]
    knobs: tuple[Knob, ...] = ()
    calibrated: tuple[str, ...] = ()
    presets: Mapping[str, Settings] = field(default_factory=dict, hash=False)
    exits: Callable[..., Exits] | None = None
    objective: Objective | None = None
    frozen: bool = True
    sweep: Callable[[Mapping[str, int]], Sequence[tuple[Settings, Mapping[str, float]]]] | None = None
    control: bool = False

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


STREAMS = ("image", "text", "audio", "decoder")


def reading_knobs(about: str) -> tuple[Knob, ...]:
    """A threshold for each stream whose answer a rule may read. A model has one: its decoder, or its only encoder."""
    return tuple(Knob(stream, 1.0, f"{about} 1 or more never leaves. Choose it by calibration.", 0.0, 2.0) for stream in STREAMS)


def answering(layers: Mapping[str, int]) -> str | None:
    """The stream whose state is read out to the answer: the decoder, else the only one; None if several encoder streams share it."""
    return STREAMS[-1] if STREAMS[-1] in layers else next(iter(layers)) if len(layers) == 1 else None


def reading_plan(settings: Settings, layers: Mapping[str, int], rule: Callable[[float], Reading]) -> Plan:
    """A plan whose answering stream follows `rule`(its threshold); all others run at full depth, as the model has them.

    Raises KnobError for a threshold on a stream that gives no answer.
    """
    stream = answering(layers)
    for other in layers:
        if other != stream and settings.get(other, 1.0) < 1:
            raise KnobError(
                f"{other}={settings[other]} would leave where nothing can be read: this method judges the answer, which "
                f"{'the ' + repr(stream) + ' stream' if stream else 'no single stream'} of this model gives."
            )
    rules = {} if stream is None else {stream: rule(settings.get(stream, 1.0))}
    policy = settings.get("keys_values", "propagate")
    return Plan(rules, decompose=False, policy=policy, together=settings.get("batch") == "min", rank=settings.get("rank", 0))


RANK = Knob(
    "rank", 0, "a language model's exits are read by a head of this rank, at its share of the price; 0: by the whole head", 0, 100_000
)
