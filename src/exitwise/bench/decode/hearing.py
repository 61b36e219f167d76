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
from .clips import Clip, pieces, recordings
from .run import Setup, Tick
from .speech import KNOWN, Speech, Way, ours, plain, run
from .ways import FULL

EXITS = Path(".data/speech")  # where trained exits are kept
PIECE, EVERY, LESSON = (
    5.0,
    2.5,
    1.0,
)  # seconds of a piece, between the beginnings of those that are judged, and of those that are learnt from
FEW = "exits are trained on the model's own transcripts of the other recordings: a hundred or two tokens, too few for a claim"
RAMPED, JUDGED = "deebert", "calm"  # the methods whose objectives train a ramp for each layer, and one classifier for all
SHARES = (0.5, 0.9)  # of the similarities that are measured at full depth, below which a threshold lies
GAPS = (0.9, 0.5)


def measure(
    speech: Speech, sounds: Path, out: Path, name: str, folder: Path, tick: Tick, steps: int = 30, tokens: int = 32
) -> dict[str, Any]:
    """The record of all ways on pieces of all recordings, and on the whole of those whose text is known."""
    found = recordings(sounds)
    items = [piece for clip in found for piece in pieces(clip, PIECE, EVERY)]
    items += [clip for clip in found if clip.recording in KNOWN]
    asked = Schooling(steps=steps, lr=5e-4)
    taken = ways(speech, found, folder, asked, tokens, tick)
    return run(speech, items, taken, Setup(tokens, out, name, {"training": FEW, "steps": steps, "known": sorted(KNOWN)}, tick))


def render(made: dict[str, Any]) -> str:
    """The table of a record, for a terminal; MACs and times are shares of the model's own `generate` on the same piece."""
    count = made["task"]["items"]
    lines = [
        f"{made['config']['model']}: {count} pieces",
        f"{'way':28}{'layers':>8}{'MACs':>7}{'time':>7}{'cpu':>7}{'WER':>7}{'WER text':>10}{'equal':>8}",
    ]
    for row in made["speech"]:
        depth = f"{row['depth']['decoder']:.2f}" if row["depth"] else "-"
        text = "-" if row["wer_text"] is None else f"{row['wer_text']:.1f}"
        times = f"{row['wall']['median']:>7.2f}{row['processor']['median']:>7.2f}"
        lines.append(f"{row['key']:28}{depth:>8}{row['macs']:>7.2f}{times}{row['wer']:>7.1f}{text:>10}{row['equal']:>5}/{count}")
    return "\n".join(lines)


def taught(speech: Speech, lessons: Sequence[Labelled], method: str, folder: Path, asked: Schooling) -> Exits:
    """Exits of a method, trained on these lessons, one a step; read from the folder where they are done."""
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


def thresholds(engine: Engine, speech: Speech, clips: Sequence[Clip], stream: str, tokens: int) -> list[float]:
    """Similarities that lie at `SHARES` of those which full depth measures before the last layer."""
    found = []
    for clip in clips:
        trace = engine.generate(record=True, input_features=speech.features(clip), max_new_tokens=tokens).trace
        sure = trace.sureness[stream][..., :-1].flatten()
        found.append(sure[sure.isfinite() & (sure > 0)])
    return [float(torch.cat(found).quantile(share)) for share in SHARES]


def ways(speech: Speech, clips: Sequence[Clip], folder: Path, asked: Schooling, tokens: int, tick: Tick) -> list[Way]:
    """Static depths, rules with thresholds, drafts; untrained, and with exits that were trained on the other recordings."""
    model, layers = speech.model, speech.model.config.decoder_layers
    found = [plain(), ours(FULL, Engine(model, FULL))]
    found += [ours(f"static, depth {depth}", Engine(model, "static", decoder=depth)) for depth in range(1, layers)]
    found += [ours(f"softmax {gap}", Engine(model, JUDGED, decay="none", decoder=gap)) for gap in GAPS]
    tick("thresholds of similarity")
    still = Engine(model, JUDGED, measure="saturation", decay="none")
    for share, limit in zip(SHARES, thresholds(still, speech, clips, "decoder", tokens)):
        found.append(ours(f"saturation, {share:.0%}", still.with_settings(decoder=limit)))
    mue = Engine(model, "mue", decoder_scope="last")
    limits = thresholds(mue, speech, clips, "decoder", tokens)
    found += [ours(f"mue, {share:.0%}", mue.with_settings(decoder=limit)) for share, limit in zip(SHARES, limits)]
    found += [ours(f"layerskip, depth {depth}", Engine(model, "layerskip", depth=depth, drafts=3)) for depth in (layers - 1,)]
    found.append(ours("ngram", Engine(model, "ngram", drafts=3)))
    return [*found, *_trained(speech, clips, folder, asked, tokens, tick), *_hearing(speech, clips, mue, tokens)]


def _trained(speech: Speech, clips: Sequence[Clip], folder: Path, asked: Schooling, tokens: int, tick: Tick) -> list[Way]:
    """The same exits after training: a ramp for each layer, and the classifier."""
    model, layers, exits = speech.model, speech.model.config.decoder_layers, dict[str, dict[str, Exits]]()
    if len(clips) < 2:
        raise InputError(f"{clips[0].recording} is the only recording, and exits for it are trained on others. Give two or more.")
    tick("transcripts to learn from")
    lessons = {clip.recording: [_lesson(speech, piece, tokens) for piece in pieces(clip, PIECE, LESSON)] for clip in clips}
    for method in (RAMPED, JUDGED):
        exits[method] = {}
        for name in lessons:
            tick(f"exits of {method} for {name}")
            rest = [lesson for other, theirs in lessons.items() if other != name for lesson in theirs]
            exits[method][name] = taught(speech, rest, method, folder / name / method, asked)

    def each(label: str, method: str, source: str, **knobs: Any) -> Way:
        return ours(label, {name: Engine(model, method, exits=made, **knobs) for name, made in exits[source].items()})

    found = [each(f"static, depth {depth}, ramps", "static", RAMPED, decoder=depth) for depth in range(1, layers)]
    found += [each(f"softmax {gap}, ramps", JUDGED, RAMPED, decay="none", decoder=gap) for gap in GAPS]
    return [*found, *(each(f"classifier {s}", JUDGED, JUDGED, decay="none", measure="classifier", decoder=s) for s in (0.8,))]


def _hearing(speech: Speech, clips: Sequence[Clip], mue: Engine, tokens: int) -> list[Way]:
    """Exits in the encoder: the sound's tokens leave too."""
    limits = thresholds(mue, speech, clips, "audio", tokens)
    found = [plain(sound=True)]
    return [*found, *(ours(f"mue, sound {s:.0%}", mue.with_settings(audio=x), sound=True) for s, x in zip(SHARES[-1:], limits[-1:]))]
