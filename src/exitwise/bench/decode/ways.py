"""Ways to continue a prompt greedily: the model's own `generate`, transformers' early-exit drafting, `economize`, and our methods."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import families, methods
from ...engine import Engine
from ...errors import ExitwiseError, FingerprintError

PLAIN, FULL, ASSISTANT = "generate", "never", "assistant_early_exit"
RIVAL = "economize"
Inputs = Mapping[str, Any]  # input_ids and attention_mask of one prompt


@dataclass(frozen=True)
class Text:
    """A continuation. tokens: new ids, an end among them. depth: mean layers of a token; calls: of layers. rounds, drafted, accepted: of
    drafts. None where the way does not tell."""

    tokens: list[int]
    depth: float | None = None
    calls: int | None = None
    rounds: int | None = None
    drafted: int | None = None
    accepted: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Write = Callable[[Inputs, int], Text]


@dataclass(frozen=True)
class Way:
    """One line of a comparison. opened: a context that makes the model ready, whose price is not measured, and gives what writes.

    settings: all that the text depends on, as plain values.
    """

    key: str
    label: str
    opened: Callable[[], AbstractContextManager[Write]]
    settings: Mapping[str, Any]
    lossless: bool = True


@dataclass(frozen=True)
class Absent:
    """A way that does not take part, and why."""

    key: str
    reason: str


def _at_once(write: Write) -> Callable[[], AbstractContextManager[Write]]:
    """For what needs nothing made ready."""
    return lambda: nullcontext(write)


def plain(model: Any) -> Way:
    """The untouched model."""
    return Way(PLAIN, "generate", _at_once(partial(_generated, model.generate)), {})


def _generated(generate: Callable[..., Any], given: Inputs, most: int, **more: Any) -> Text:
    with torch.no_grad():
        out = generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=most, do_sample=False, **more)
    return Text(out[0, given["input_ids"].shape[1] :].tolist())


def assistant(model: Any, depth: int = 2) -> Way:
    """`generate(assistant_early_exit=depth)`: the model's first layers draft, with a cache of their own, at transformers' defaults.

    Its drafting stops below a probability of 0.4, or after 20 tokens. Depth 2 was the fastest of 2, 6, 10 and 15 on SmolLM2.
    """

    @contextmanager
    def opened() -> Iterator[Write]:
        layers = model.config.num_hidden_layers
        try:
            yield partial(_generated, model.generate, assistant_early_exit=depth)
        finally:
            model.config.num_hidden_layers = layers  # while it drafts it says less, and an exception leaves it so

    threshold = getattr(model.generation_config, "assistant_confidence_threshold", None)
    threshold = 0.4 if threshold is None else threshold
    return Way(ASSISTANT, f"assistant_early_exit={depth}", opened, {"depth": depth, "confidence_threshold": threshold})


def ours(key: str, engine: Engine, label: str | None = None) -> Way:
    """A method of ours. Those that draft are lossless; the others if no token ever leaves."""
    plan = engine.plan()
    drafts = plan.decoding is not None and plan.decoding.draft is not None
    settings = {"method": engine.method_name, **engine.settings_dict()}
    return Way(key, label or key, _at_once(partial(_ours, engine)), settings, drafts or engine.method_name == FULL)


def _ours(engine: Engine, given: Inputs, most: int) -> Text:
    out = engine.generate(**given, max_new_tokens=most, do_sample=False)
    assert out.sequences is not None and out.depth is not None
    known, drafts = given["input_ids"].shape[1], out.drafts
    told = (drafts.rounds, drafts.drafted, drafts.accepted) if drafts is not None and drafts.rounds else (None, None, None)
    return Text(out.sequences[0, known:].tolist(), out.trace.mean_depth("decoder"), sum(out.trace.calls.values()), *told)


def economized(model: Any, depth: int = 2) -> list[Way | Absent]:
    """The ways of the package `economize` that need no training and write the model's own text: prompt lookup, and early-exit drafting."""
    if importlib.util.find_spec(RIVAL) is None:
        return [Absent(RIVAL, "the package economize is not installed. Run: pip install economize")]
    import economize
    from economize.techniques.early_exit import EarlyExitConfig
    from economize.techniques.lookup import LookupConfig

    configs = {"lookup": LookupConfig(), "early_exit": EarlyExitConfig(exit_layer=depth, head="shared")}
    found: list[Way | Absent] = []
    for name, config in configs.items():

        @contextmanager
        def opened(config: Any = config) -> Iterator[Write]:
            made = economize.apply(model, config)
            try:
                yield partial(_economized, made, model.generation_config.eos_token_id)
            finally:
                made.detach()

        settings = {"version": economize.__version__, "config": str(config)}
        found.append(Way(f"{RIVAL} {name}", f"{RIVAL} {name}", opened, settings))
    return found


def _economized(made: Any, ends: Any, given: Inputs, most: int) -> Text:
    done = made.decode(given["input_ids"][0], most, stop=ends)
    drafted, accepted = (sum(pair[i] for pair in done.acceptance) for i in (0, 1))
    return Text(done.tokens.tolist(), rounds=len(done.acceptance), drafted=drafted, accepted=accepted)


def tried(ways: Sequence[Way], given: Inputs, most: int = 2) -> tuple[list[Way], list[Absent]]:
    """Those that write a few tokens of a prompt, and the others with what they said: a family that a way does not know is found so."""
    able: list[Way] = []
    absent: list[Absent] = []
    for way in ways:
        try:
            with way.opened() as write:
                write(given, most)
            able.append(way)
        except Exception as problem:  # whatever a foreign library raises
            absent.append(Absent(way.key, str(problem) if isinstance(problem, ExitwiseError) else f"{type(problem).__name__}: {problem}"))
    return able, absent


def of_methods(
    model: Any, names: Sequence[str], knobs: Mapping[str, Mapping[str, Any]], saved: Mapping[str, Engine]
) -> tuple[list[Way], list[Absent]]:
    """Our methods by their names. knobs: of each; saved: engines that go before new ones. What does not fit the model is absent."""
    able: list[Way] = []
    absent: list[Absent] = []
    for name in names:
        own = dict(knobs.get(name, {}))
        try:
            engine = saved[name].with_settings(**own) if name in saved else Engine(model, name, **own)
            if not engine.plan().rules and engine.plan().decoding is None and name != FULL:
                absent.append(Absent(name, f"with {own or 'its defaults'} no token ever leaves. Give it a threshold or a depth."))
                continue
            able.append(ours(name, engine))
        except ExitwiseError as problem:
            absent.append(Absent(name, str(problem)))
    return able, absent


def named(asked: str) -> list[str]:
    """The methods behind --methods: 'all', or names with commas; full depth is always there. Raises UnknownName."""
    names = methods.names() if asked.strip() == "all" else [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        methods.load(name)
    return [FULL, *(name for name in dict.fromkeys(names) if name != FULL)]


def with_adapter(model: Any, folder: Path, **knobs: Any) -> Engine:
    """Self-speculation with a trained adapter from the folder that its training wrote. Raises CheckpointError, FingerprintError."""
    from ...lm.adapter import load_adapter
    from ...methods.kangaroo import adapted

    loaded = load_adapter(folder)
    (stack,) = families.of(model)[1].stacks_of(model)
    layers, width = len(stack.layers(model)), model.config.get_text_config().hidden_size
    config = loaded.adapter.config
    if config.width != width or not 0 < config.depth < layers:
        raise FingerprintError(
            f"The adapter in {folder} reads states of width {config.width} after layer {config.depth}; {type(model).__name__} has width "
            f"{width} and {layers} layers. Give the adapter that was trained for this model."
        )
    return Engine(model, "kangaroo", exits=adapted(loaded.adapter, layers, loaded.shortlist), **knobs)
