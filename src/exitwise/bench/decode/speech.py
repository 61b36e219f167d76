"""A speech model that transcribes recordings: what exits of its decoder save in depth, MACs and time, and what they cost in wrong words.

Wrong words are those that are not in the full-depth transcript of the same piece of sound, and, of one recording whose text is known, not
in that text. Decoding is timed with the encoder's states given, since no exit of the decoder changes what they cost; ways with exits in the
encoder begin at the sound, beside a `generate` that does so too. What every way said of a piece is kept on disk until the run is done.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ...cost import count_macs
from ...engine import Engine
from ...errors import CheckpointError
from ...kept import fingerprint
from .. import metrics, record
from ..cells import Cells, key_of
from .clips import RATE, Clip
from .run import Setup, spread, turned
from .ways import FULL, PLAIN

KNOWN = {"jfk": "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."}
# John F. Kennedy's inaugural address, 20 January 1961; a work of the United States government.


@dataclass(frozen=True)
class Speech:
    """A model that writes what it hears. ear: samples -> features, as `transformers` has it for the model."""

    model: Any
    tokenizer: Any
    ear: Any

    def features(self, clip: Clip) -> Tensor:
        """(1, bands, frames)."""
        found: Tensor = self.ear(clip.samples, sampling_rate=RATE, return_tensors="pt").input_features
        return found

    @torch.no_grad()
    def states(self, clip: Clip) -> BaseModelOutput:
        """What the encoder makes of a piece."""
        return BaseModelOutput(last_hidden_state=self.model.get_encoder()(self.features(clip)).last_hidden_state)

    def text(self, tokens: Sequence[int]) -> str:
        """Words alone."""
        said: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return said.strip()

    @property
    def label(self) -> str:
        """What a record calls the model: its shape, since a path would tell of a machine."""
        config = self.model.config
        return f"{config.model_type}, {config.encoder_layers}+{config.decoder_layers} layers, width {config.d_model}"


def load(folder: str | Path) -> Speech:
    """From a folder that holds model, tokenizer and feature extractor, as `save_pretrained` of each writes them. Raises CheckpointError."""
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, PreTrainedTokenizerFast

    try:
        parts = [
            kind.from_pretrained(str(folder), local_files_only=True)
            for kind in (AutoModelForSpeechSeq2Seq, PreTrainedTokenizerFast, AutoFeatureExtractor)
        ]
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{folder} does not hold a speech model with tokenizer and feature extractor: {problem}") from None
    return Speech(parts[0].eval(), *parts[1:])


@dataclass(frozen=True)
class Way:
    """One line of the comparison. engine: name of a recording -> the engine for its pieces (trained on the others), None for the model's
    own `generate`. sound: it begins at the sound, since the encoder has exits too. lossless: its text must be the model's own."""

    key: str
    label: str
    engine: Callable[[str], Engine] | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False
    sound: bool = False
    lossless: bool = False


def plain(sound: bool = False) -> Way:
    """The untouched model."""
    return Way(PLAIN + (", from the sound" if sound else ""), PLAIN, None, sound=sound, lossless=True)


def ours(key: str, engine: Engine | Mapping[str, Engine], sound: bool = False) -> Way:
    """A method of ours; a mapping has an engine for each recording, with exits that were trained on the others."""
    one = engine if isinstance(engine, Engine) else next(iter(engine.values()))
    plan = one.plan()
    lossless = plan.decoding is not None or one.method_name == FULL
    find: Callable[[str], Engine] = (lambda _: engine) if isinstance(engine, Engine) else engine.__getitem__
    settings = {"method": one.method_name, **one.settings_dict()}
    return Way(key, key, find, settings, trained=not isinstance(engine, Engine), sound=sound, lossless=lossless)


def run(speech: Speech, items: Sequence[Clip], ways: Sequence[Way], setup: Setup) -> dict[str, Any]:
    """The record: a row for each way. The first way is the model's own `generate`."""
    assert ways[0].key == PLAIN
    config = {**setup.about, "model": speech.label, "pieces": [[c.recording, c.start, c.seconds] for c in items], "tokens": setup.tokens}
    told = {**config, "ways": {way.key: {**way.settings, "trained": way.trained} for way in ways}}
    key = key_of({**told, "weights": fingerprint(speech.model), "commit": record.commit(), "threads": torch.get_num_threads()})
    cells = Cells(setup.out, setup.name, key)
    with record.run(setup.out, setup.name, told, 0) as made:
        lines = []
        for place, clip in enumerate(items):
            setup.tick(f"{setup.name}: piece {place + 1} of {len(items)}")
            lines.append(cells.once(f"{place:05d}", partial(heard, speech, clip, turned(ways, place), setup.tokens)))
        made["task"] = {"kind": "transcribe", "items": len(items), "seconds": sum(clip.seconds for clip in items)}
        made["encoder_seconds"] = statistics.median(line["encoder_seconds"] for line in lines)
        made["speech"] = [_row(way, items, lines) for way in ways]
        made["processor_note"] = (
            "wall: seconds on the clock; processor: seconds of this process's one thread, which other work leaves alone"
        )
    cells.done()
    return made


def heard(speech: Speech, clip: Clip, ways: Sequence[Way], tokens: int) -> dict[str, Any]:
    """What every way says of a piece, how long it took, and what it multiplied. The first turn of each is not measured."""
    start = time.perf_counter()
    states = speech.states(clip)
    encoder = time.perf_counter() - start
    told = {}
    for way in ways:
        given: dict[str, Any] = {"input_features": speech.features(clip)} if way.sound else {"encoder_outputs": states}
        with count_macs() as counted:
            text, depth = _written(speech.model, way, clip.recording, given, tokens)
        clocks = time.perf_counter(), time.process_time()
        _written(speech.model, way, clip.recording, given, tokens)
        wall, processor = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
        told[way.key] = {
            "text": speech.text(text), "tokens": len(text), "depth": depth, "macs": counted.total, "wall": wall, "processor": processor
        }  # fmt: skip
    return {"encoder_seconds": encoder, "ways": told}


def _written(model: Any, way: Way, recording: str, given: Mapping[str, Any], tokens: int) -> tuple[list[int], dict[str, float]]:
    """(token ids, mean depth of each stream)."""
    asked = {**given, "max_new_tokens": tokens, "return_dict_in_generate": True}
    with torch.no_grad():
        out: Any = model.generate(**asked) if way.engine is None else way.engine(recording).generate(**asked)
    depth = {} if way.engine is None else {stream: out.trace.mean_depth(stream) for stream in out.trace.depth}
    return out.sequences[0].tolist(), depth


def _row(way: Way, items: Sequence[Clip], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One way over all pieces; times and MACs as shares of the model's own `generate` on the same piece, begun at the same place."""
    mine = [line["ways"][way.key] for line in lines]
    base = [line["ways"][plain(way.sound).key] for line in lines]
    full = [line["ways"][PLAIN]["text"] for line in lines]
    said = [each["text"] for each in mine]
    known = [(text, KNOWN[clip.recording]) for text, clip in zip(said, items, strict=True) if _whole(clip, items)]
    tokens = sum(each["tokens"] for each in mine)
    return {
        "key": way.key, "label": way.label, "settings": dict(way.settings), "trained": way.trained, "sound": way.sound,
        "lossless": way.lossless, "tokens": tokens,
        "depth": {s: sum(each["depth"][s] * each["tokens"] for each in mine) / tokens for s in mine[0]["depth"]},
        "macs": sum(each["macs"] for each in mine) / sum(each["macs"] for each in base),
        "wall": spread([ours["wall"] / theirs["wall"] for ours, theirs in zip(mine, base, strict=True)]),
        "processor": spread([ours["processor"] / theirs["processor"] for ours, theirs in zip(mine, base, strict=True)]),
        "wall_seconds": spread([each["wall"] for each in mine]),
        "equal": sum(a == b for a, b in zip(said, full, strict=True)),
        "wer": metrics.wer(said, full), "wer_text": metrics.wer(*zip(*known, strict=True)) if known else None,
        "errors": [metrics.word_errors(a, b) for a, b in zip(said, full, strict=True)],
    }  # fmt: skip


def _whole(clip: Clip, items: Sequence[Clip]) -> bool:
    """Whether a piece is the whole of a recording whose text is known: it begins it, and no other piece of it is longer."""
    longest = max(other.seconds for other in items if other.recording == clip.recording)
    return clip.recording in KNOWN and clip.start == 0 and clip.seconds == longest
