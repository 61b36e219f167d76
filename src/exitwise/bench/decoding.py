"""`make bench`'s measurements of decoding language models: speed, realised saving, equality, memory, long runs; each a step of its own.

The model is a folder, a hub name or a GGUF file, by --model or the variable EXITWISE_LANGUAGE_MODEL; EXITWISE_GEMMA names the second one,
EXITWISE_SPEECH_MODEL the folder of one that transcribes recordings.
A step whose model, prompts or trained adapter is not there is left out, with the reason.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from .. import methods
from ..engine import Engine
from ..errors import FingerprintError
from . import prompts as forms
from . import record
from .decode import choose, forced, hearing, kinds, long, memory, roofline, run, speech, table, ways
from .decode.run import Asked, Setup
from .decode.ways import Way

MODEL, SECOND, SPEECH = "EXITWISE_LANGUAGE_MODEL", "EXITWISE_GEMMA", "EXITWISE_SPEECH_MODEL"
Summary = dict[str, float | None]
KEEP = 0.99
DRAFTS: tuple[dict[str, Any], ...] = tuple({"sure": sure, "lookup": lookup} for sure in (0.5, 0.8) for lookup in (0, 2))
OFFERS: tuple[dict[str, Any], ...] = tuple({"drafts": drafts, "repeats": repeats} for drafts, repeats in ((2, 0), (2, 9), (3, 11), (4, 15)))
CHOSEN_ON = 4  # held prompts on which thresholds are chosen
LOSSY = ("soft", "calm", "free")  # of the model as it is; one threshold each, on the decoder


@dataclass(frozen=True)
class Wish:
    """How much is measured. model, second, speech: see above; sounds: the folder of recordings. adapter: what the training of a drafter
    wrote; grams: an engine of n-grams that was taught and saved; tuned: one of exits that were trained. longest: tokens of a prompt,
    beyond which it is not asked. few: prompts of the steps with many ways; held: prompts to choose settings on, never judged."""

    model: str | None = None
    second: str | None = None
    speech: str | None = None
    sounds: Path = Path(".data/models-small/audio")
    data: Path = Path(".data/llm-eval/spec-bench/question.jsonl")
    adapter: Path = Path(".data/kangaroo/adapter")
    grams: Path = Path(".data/kangaroo/ngram")
    tuned: Path = Path(".data/kangaroo/tuned/export")
    prompts: int = 50
    tokens: int = 128
    few: int = 6
    held: int = 8
    longest: int = 1024
    long: int = 2000
    alone: int = 2
    repeats: int = 7

    @staticmethod
    def of(given: Any) -> Wish:
        """From the arguments of the command line, and the environment."""
        own = {name: getattr(given, name) for name in ("prompts", "few", "tokens", "long", "repeats")}
        paths: dict[str, Any] = {name: Path(getattr(given, name)) for name in ("adapter", "grams", "tuned", "data") if getattr(given, name)}
        known = {name: value for name, value in own.items() if value is not None}
        model, second, heard = given.model or os.environ.get(MODEL), os.environ.get(SECOND), os.environ.get(SPEECH)
        return Wish(model=model, second=second, speech=heard, **known, **paths)


def options(parser: argparse.ArgumentParser) -> None:
    """What the command line says of these steps."""
    own = parser.add_argument_group("decoding")
    own.add_argument("--model", help=f"the language model: a folder, a hub name or a GGUF file; or the variable {MODEL}")
    own.add_argument("--adapter", help="the folder of its trained adapter")
    own.add_argument("--grams", help="the folder of a saved engine of n-grams, taught with its own answers")
    own.add_argument("--tuned", help="the folder of a saved engine with trained exits, such as `exitwise train --method eellm` writes")
    own.add_argument("--data", help="the prompts, in any form that `exitwise bench` reads")
    own.add_argument("--prompts", type=int, help="prompts of decode-lossless")
    own.add_argument("--few", type=int, help="prompts of the steps with many ways")
    own.add_argument("--tokens", type=int, help="new tokens of each")
    own.add_argument("--long", type=int, help="tokens of the long run")


def steps(wish: Wish, out: Path, summary: Summary, tick: Callable[[str], None]) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """(name -> step, why others are left out)."""
    heard, why = transcribing(wish, out, summary, tick)
    written, others = writing(wish, out, summary, tick)
    return {**written, **heard}, [*others, *why]


def transcribing(wish: Wish, out: Path, summary: Summary, tick: Callable[[str], None]) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """The step of the speech model, or why it is left out."""
    if wish.speech is None:
        return {}, [f"No speech model is named: decode/whisper is left out. Set {SPEECH} to its folder."]
    if not wish.sounds.is_dir():
        return {}, [f"{wish.sounds} is not there: decode/whisper is left out."]
    folder = wish.speech

    def step() -> None:
        made = hearing.measure(speech.load(folder), wish.sounds, out, "decode-whisper", hearing.EXITS, tick)
        print(hearing.render(made))
        summary["decode/whisper/unequal"] = sum(made["task"]["items"] - row["equal"] for row in made["speech"] if row["lossless"])

    return {"decode-whisper": step}, []


def writing(wish: Wish, out: Path, summary: Summary, tick: Callable[[str], None]) -> tuple[dict[str, Callable[[], None]], list[str]]:
    """The steps of language models, and why others are left out."""
    every: dict[str, Callable[[], None]] = {"decode-kinds": partial(kinds_of, wish, out, summary, tick)}
    if wish.model is None:
        return every, [f"No language model is named: decode/ is left out. Give --model FOLDER, or set {MODEL}."]
    bench, missing = Bench(wish, wish.model, out, tick), list[str]()
    found: dict[str, Callable[[], None]] = {
        **every,
        "decode-realised": partial(bench.realised, summary),
        "decode-memory": partial(bench.memory, summary),
        "decode-long": partial(bench.long, summary),
        "decode-roofline": partial(bench.roofline, summary),
    }
    if not wish.data.is_file():
        return found, [f"{wish.data} is not there: decode/unequal_prompts and the speed on prompts are left out."]
    found["decode-lossless"] = partial(bench.lossless, summary)
    found["decode-rivals"] = bench.rivals
    found["decode-lossy"] = partial(bench.lossy, summary)
    if not bench.trained:
        missing.append(f"{wish.adapter} holds no trained adapter: drafts are those of n-grams alone.")
    if wish.second is None:
        missing.append(f"decode/gemma3 is left out: {SECOND} names no model.")
    else:
        nowhere = replace(wish, adapter=Path("none"), grams=Path("none"))  # what was trained belongs to the first model
        found["decode-gemma3"] = partial(Bench(nowhere, wish.second, out, tick, "decode-gemma3").second, summary)
    return found, missing


def kinds_of(wish: Wish, out: Path, summary: Summary, tick: Callable[[str], None]) -> None:
    """A model of each family with random weights: whether our loop is slower than `generate` on any."""
    with record.run(out, "decode-kinds", {"shape": kinds.SHAPE}, 0) as made:
        made["kinds"] = kinds.measure(wish.tokens // 4, 3 * wish.repeats, tick)
        summary["decode/least_over_generate"] = min(float(each["over_generate"]) for each in made["kinds"])
        summary["decode/kinds_unequal"] = sum(not each["equal"] for each in made["kinds"])


class Bench:
    """One model with its prompts; both are loaded when a step first needs them."""

    def __init__(self, wish: Wish, model: str, out: Path, tick: Callable[[str], None], name: str = "decode") -> None:
        self.wish, self.named, self.out, self.tick, self.name = wish, model, out, tick, name

    @property
    def trained(self) -> bool:
        """Whether there is a trained adapter."""
        from ..lm.adapter import WEIGHTS

        return (self.wish.adapter / WEIGHTS).is_file()

    @cached_property
    def speaker(self) -> Any:
        from ..pretrained import language_model

        return language_model(self.named, note=self.tick)

    @cached_property
    def label(self) -> str:
        """What the record calls the model: its shape, since a path would tell of a machine."""
        config = self.speaker.model.config.get_text_config()
        return f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, vocabulary {config.vocab_size}"

    @cached_property
    def asked(self) -> tuple[list[Asked], list[Asked]]:
        """(prompts to judge on, prompts to choose settings on): both spread over the file, none in both."""
        every = [each for each in asked_of(self.speaker, forms.read(self.wish.data).prompts) if each.length <= self.wish.longest]
        judged = spread_over(every, self.wish.prompts)
        places = {id(each) for each in judged}
        return judged, spread_over([each for each in every if id(each) not in places], self.wish.held)

    def _drafters(self) -> dict[str, tuple[Engine, Sequence[dict[str, Any]]]]:
        """Lossless ways that may be the fastest, each with the settings to try: what was trained, and n-grams of the text itself."""
        model, found = self.speaker.model, dict[str, tuple[Engine, Sequence[dict[str, Any]]]]()
        if self.trained:
            found["kangaroo"] = ways.with_adapter(model, self.wish.adapter), DRAFTS
        if (taught := self._saved(self.wish.grams)) is not None:
            found["n-grams, taught"] = taught, OFFERS
        found["n-grams"] = Engine(model, "ngram"), OFFERS
        return found

    def _saved(self, folder: Path) -> Engine | None:
        """An engine that was trained and saved, if it is there and belongs to this model."""
        if not folder.is_dir():
            return None
        try:
            return Engine.load(folder, self.speaker.model)
        except FingerprintError as other:
            self.tick(f"{folder} is left out: {other}")
            return None

    def _leavers(self) -> dict[str, Engine]:
        """Ways whose tokens may leave early: the model's own head halfway up, and exits that were trained."""
        model, half = self.speaker.model, max(1, self.speaker.model.config.get_text_config().num_hidden_layers // 2)
        found = dict[str, Engine]()
        for name in LOSSY:
            own = {"depth": half} if "depth" in {knob.name for knob in methods.load(name).knobs} else {}
            found[name] = Engine(model, name, **own)
        if (tuned := self._saved(self.wish.tuned)) is not None:
            found[f"{tuned.method_name}, trained exits"] = tuned
        return found

    @cached_property
    def drafters(self) -> dict[str, Engine]:
        """Each of them at its fastest setting on the held prompts, the fastest of all first."""
        speeds, engines = dict[str, float](), dict[str, Engine]()
        with record.run(self.out, f"{self.name}-choice", {"model": self.label, "prompts": self.wish.held}, 0) as made:
            made["tried"] = {}
            for label, (engine, grid) in self._drafters().items():
                best, tried = choose.fastest(self.speaker.model, engine, grid, self.asked[1], self._short, 0.0, self.tick)
                made["tried"][label] = tried
                engines[label], speeds[label] = best or engine, max(float(each["over_generate"]) for each in tried)
            made["order"] = sorted(engines, key=lambda label: -speeds[label])
        return {label: engines[label] for label in made["order"]}

    @property
    def _short(self) -> int:
        """Tokens of the steps with many runs."""
        return max(1, self.wish.tokens // 2)

    def _ways(self) -> list[Way]:
        """Untouched, our full depth, and the drafter that was the fastest on the held prompts."""
        model, (label, engine) = self.speaker.model, next(iter(self.drafters.items()))
        return [ways.plain(model), ways.ours(ways.FULL, Engine(model, ways.FULL), "full depth"), ways.ours("draft", engine, label)]

    def _setup(self, name: str, tokens: int) -> Setup:
        return Setup(tokens, self.out, name, {"model": self.label, "data": self.wish.data.parent.name}, self.tick)

    # -- the steps ------------------------------------------------------------------------------------------------------------------

    def realised(self, summary: Summary) -> None:
        """Forced exits against the ideal: one row at half depth; 16 at depths up to the half, and up to the last layer (`_all`)."""
        model, layers = self.speaker.model, self.speaker.model.config.get_text_config().num_hidden_layers
        tokens, repeats, half = self.wish.tokens, self.wish.repeats, max(1, layers // 2)
        few, seldom = max(2, tokens // 5), max(3, repeats * 2 // 3)
        cases = (
            ("batch1", 1, [half], few, 3 * repeats),  # short turns: a machine's speed drifts by more within a long one than is looked for
            ("batch16", 16, forced.mixed(half), few, seldom),
            ("batch16_all", 16, forced.mixed(layers), few, seldom),
        )
        for name, rows, depths, count, turns in cases:
            key = f"decode/realised_{name}"
            with record.run(self.out, key.replace("/", "-"), {"model": self.label, "depths": depths}, 0) as made:
                self.tick(key)
                made.update(forced.realised(model, rows, depths, turns, count))
                summary[key], summary[key.replace("realised", "possible")] = made["realised"], made["possible"]

    def memory(self, summary: Summary) -> None:
        """Peaks, each in a process of its own."""
        with record.run(self.out, "decode-memory", {"model": self.label}, 0) as made:
            self.tick("decode-memory")
            made.update(memory.beside(self.named, tokens=self.wish.tokens))
            summary["decode/peak_over_generate"] = made["peak_over_generate"]

    def long(self, summary: Summary) -> None:
        """Eight rows of unlike length."""
        model, rows = self.speaker.model, 8
        texts = long.prompts(model.config.get_text_config().vocab_size, rows, 64)
        with record.run(self.out, "decode-long", {"model": self.label}, 0) as made:
            made.update(long.measure(Engine(model, ways.FULL), texts, self.wish.long, self.wish.alone, self.tick))
            summary["decode/long_unequal"], summary["decode/long_beyond_cache_mib"] = made["unequal"], made["beyond_cache_mib"]

    def roofline(self, summary: Summary) -> None:
        """The floor of a step on this machine; and what the drafts of the newest lossless run would be worth on a GPU."""
        with record.run(self.out, "decode-roofline", {"model": self.label}, 0) as made:
            self.tick("decode-roofline")
            made.update(roofline.measure(self.speaker.model, self.wish.repeats))
            summary["decode/ceiling_over_generate"] = made["ceiling"]
            for last in record.latest(self.out, "decode-lossless")[:1]:
                made["gpus"] = roofline.on_gpus(self.speaker.model, next(row for row in last["decode"] if row["key"] == "draft"))

    def lossless(self, summary: Summary) -> None:
        """Real prompts: `generate`, our full depth and self-speculation; equal texts and speed."""
        made = run.run(self.speaker.model, self.asked[0], self._ways(), [], self._setup("decode-lossless", self.wish.tokens))
        print(table.render(made))
        rows = {row["key"]: row for row in made["decode"]}
        summary["decode/unequal_prompts"] = sum(row["unequal"] for row in rows.values() if row["lossless"])
        summary["decode/full_over_generate"] = rows[ways.FULL]["over_generate"]["median"]
        summary["decode/lossless_over_generate"] = rows["draft"]["over_generate"]["median"]
        summary["decode/lossless_over_full"] = rows["draft"]["over_full"]["median"]

    def rivals(self) -> None:
        """The same on fewer prompts, with transformers' own early-exit drafting and `economize`."""
        model = self.speaker.model
        others = [ways.assistant(model), *ways.economized(model)]
        absent = [each for each in others if isinstance(each, ways.Absent)]
        able, failed = ways.tried([each for each in others if isinstance(each, Way)], self.asked[0][0].inputs)
        skip = Engine(model, "layerskip", depth=2)
        rest = [ways.ours(label, engine, label) for label, engine in list(self.drafters.items())[1:]]
        own = [*self._ways(), *rest, ways.ours("layerskip", skip, "layerskip, untrained, depth 2")]
        few = spread_over(self.asked[0], self.wish.few)
        made = run.run(model, few, [*own, *able], [*absent, *failed], self._setup("decode-rivals", self._short))
        print(table.render(made))

    def lossy(self, summary: Summary) -> None:
        """Ways whose tokens are the model's own 99 times of 100: the fastest early exit on the held prompts, beside the drafter."""
        model, found = self.speaker.model, list[dict[str, Any]]()
        grid, speeds, engines = [{"decoder": threshold} for threshold in choose.THRESHOLDS], dict[str, float](), dict[str, Engine]()
        for label, engine in self._leavers().items():
            best, tried = choose.fastest(model, engine, grid, self.asked[1][:CHOSEN_ON], self._short, KEEP, self.tick)
            found.append({"method": label, "tried": tried})
            if best is not None:
                engines[label] = best
                speeds[label] = max(float(each["over_generate"]) for each in tried if each["agreement"] >= KEEP)
        chosen = sorted(speeds, key=lambda label: -speeds[label])[:1]
        plain, _, draft = self._ways()
        many = [plain, draft, *(ways.ours("early exit", engines[label], f"{label}, threshold chosen") for label in chosen)]
        setup = self._setup("decode-lossy", self.wish.tokens)
        setup = replace(setup, about={**setup.about, "chosen_on": found})
        made = run.run(model, self.asked[0], many, [], setup)
        print(table.render(made))
        good = [row["over_generate"]["median"] for row in made["decode"][1:] if row["agreement"] >= KEEP]
        summary["decode/lossy_over_generate_at_99"] = max(good, default=None)

    def second(self, summary: Summary) -> None:
        """Lossless speed on the second model."""
        few = spread_over(self.asked[0], 2 * self.wish.few)
        made = run.run(self.speaker.model, few, self._ways(), [], self._setup(self.name, self._short))
        print(table.render(made))
        summary["decode/gemma3/lossless_over_generate"] = made["decode"][2]["over_generate"]["median"]


def asked_of(speaker: Any, prompts: Sequence[Any], chat: bool | None = None) -> list[Asked]:
    """The first turn of each prompt, as the model is asked it."""
    return [Asked(each.where, speaker.prompts([each.text], chat), each.group) for each in prompts]


def spread_over(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly spread.

    >>> spread_over(list(range(10)), 4)
    [0, 3, 5, 8]
    """
    count = min(count, len(items))
    return [items[int(i * len(items) / count + 0.5)] for i in range(count)]
