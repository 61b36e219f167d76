"""Exits of a speech model's decoder, trained on its own transcripts of other recordings, and the ways that are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine import Engine
from ...errors import InputError
from ...heads import Exits
from ...train.exits import Labelled
from ...train.losses import IGNORED
from ..cells import key_of
from ..schooling import Schooling, trainable, trained
from .clips import Clip, pieces
from .run import Tick
from .speech import Speech, Way, ours, plain
from .ways import FULL

RAMPED, JUDGED = "deebert", "calm"  # the methods whose objectives train a ramp for each layer, and one classifier for all
SHARES = (0.25, 0.5, 0.75)  # of the similarities that are measured at full depth, below which a threshold lies
GAPS = (0.9, 0.6, 0.3)


def taught(speech: Speech, clips: Sequence[Clip], method: str, folder: Path, asked: Schooling, tokens: int) -> Exits:
    """Exits of a method, trained on what the whole model writes of these pieces; read from the folder where they are done."""
    lessons = [_lesson(speech, clip, tokens) for clip in clips]
    data = key_of({"labels": [lesson.labels.tolist() for lesson in lessons], "steps": asked.steps, "seconds": asked.seconds})
    order = torch.Generator().manual_seed(asked.seed)

    def batch(step: int) -> Labelled:
        one = lessons[int(torch.randint(len(lessons), (), generator=order))]
        return Labelled(one.inputs, one.labels, step)

    return trained(trainable(speech.model, method), batch, folder, Schooling(asked.seconds, asked.steps, asked.lr, asked.seed, data))


def _lesson(speech: Speech, clip: Clip, tokens: int) -> Labelled:
    """One piece with the model's own transcript: each token is asked of the state before it, those of the prompt are not."""
    states, model = speech.states(clip), speech.model
    with torch.no_grad():
        out = model.generate(encoder_outputs=states, max_new_tokens=tokens, return_dict_in_generate=True).sequences
    labels = out[:, 1:].clone()
    labels[:, : _prompt(model) - 1] = IGNORED
    return Labelled({"encoder_outputs": states, "decoder_input_ids": out[:, :-1]}, labels)


def _prompt(model: Any) -> int:
    """Tokens that the decoder begins with."""
    return 1 + (getattr(model.generation_config, "no_timestamps_token_id", None) is not None)


def others(recordings: Sequence[Clip], name: str, seconds: float, every: float) -> list[Clip]:
    """Pieces of all recordings but one. Raises InputError where there is no other."""
    found = [piece for clip in recordings if clip.recording != name for piece in pieces(clip, seconds, every)]
    if not found:
        raise InputError(f"{name} is the only recording, and exits for it are trained on others. Give two or more.")
    return found


def thresholds(engine: Engine, speech: Speech, clips: Sequence[Clip], stream: str, tokens: int) -> list[float]:
    """Similarities that lie at `SHARES` of those which full depth measures before the last layer."""
    found = []
    for clip in clips:
        trace = engine.generate(record=True, input_features=speech.features(clip), max_new_tokens=tokens).trace
        sure = trace.sureness[stream][..., :-1].flatten()
        found.append(sure[sure.isfinite() & (sure > 0)])
    return [float(torch.cat(found).quantile(share)) for share in SHARES]


def ways(speech: Speech, recordings: Sequence[Clip], folder: Path, asked: Schooling, tokens: int, tick: Tick) -> list[Way]:
    """Static depths, rules with thresholds, drafts; untrained, and with exits that were trained on the other recordings."""
    model, layers = speech.model, speech.model.config.decoder_layers
    found = [plain(), ours(FULL, Engine(model, FULL))]
    found += [ours(f"static, depth {depth}", Engine(model, "static", decoder=depth)) for depth in range(1, layers)]
    found += [ours(f"softmax {gap}", Engine(model, JUDGED, decay="none", decoder=gap)) for gap in GAPS]
    tick("thresholds of similarity")
    still = Engine(model, JUDGED, measure="saturation", decay="none")
    for share, limit in zip(SHARES, thresholds(still, speech, recordings, "decoder", tokens)):
        found.append(ours(f"saturation, {share:.0%}", still.with_settings(decoder=limit)))
    mue = Engine(model, "mue", decoder_scope="last")
    limits = thresholds(mue, speech, recordings, "decoder", tokens)
    found += [ours(f"mue, {share:.0%}", mue.with_settings(decoder=limit)) for share, limit in zip(SHARES, limits)]
    found += [ours(f"layerskip, depth {depth}", Engine(model, "layerskip", depth=depth, drafts=3)) for depth in (1, layers - 1)]
    found.append(ours("ngram", Engine(model, "ngram", drafts=3)))
    return [*found, *_trained(speech, recordings, folder, asked, tokens, tick), *_hearing(speech, recordings, mue, tokens)]


def _trained(speech: Speech, recordings: Sequence[Clip], folder: Path, asked: Schooling, tokens: int, tick: Tick) -> list[Way]:
    """The same exits after training: a ramp for each layer, and the classifier."""
    model, layers, exits = speech.model, speech.model.config.decoder_layers, dict[str, dict[str, Exits]]()
    for method in (RAMPED, JUDGED):
        exits[method] = {}
        for clip in recordings:
            tick(f"exits of {method} for {clip.recording}")
            lessons = others(recordings, clip.recording, 5.0, 1.0)
            exits[method][clip.recording] = taught(speech, lessons, method, folder / clip.recording / method, asked, tokens)

    def each(label: str, method: str, source: str, **knobs: Any) -> Way:
        return ours(label, {name: Engine(model, method, exits=made, **knobs) for name, made in exits[source].items()})

    found = [each(f"static, depth {depth}, ramps", "static", RAMPED, decoder=depth) for depth in range(1, layers)]
    found += [each(f"softmax {gap}, ramps", JUDGED, RAMPED, decay="none", decoder=gap) for gap in GAPS]
    return [*found, *(each(f"classifier {s}", JUDGED, JUDGED, decay="none", measure="classifier", decoder=s) for s in (0.8, 0.5))]


def _hearing(speech: Speech, recordings: Sequence[Clip], mue: Engine, tokens: int) -> list[Way]:
    """Exits in the encoder: the sound's tokens leave too."""
    limits = thresholds(mue, speech, recordings, "audio", tokens)
    found = [plain(sound=True)]
    return [*found, *(ours(f"mue, sound {s:.0%}", mue.with_settings(audio=x), sound=True) for s, x in zip(SHARES[1:], limits[1:]))]
