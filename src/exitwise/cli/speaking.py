"""`exitwise run` on a language model: its text as it comes, coloured by depth; then what it took, as a table, JSON or a page."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, KnobError
from .saying import as_json, note, show

if TYPE_CHECKING:
    from ..engine import Engine
    from .streaming import Piece, Streamed

TOKENS = 128
DRAFTS, FULL = "kangaroo", "never"


@dataclass(frozen=True)
class Wanted:
    """What only a language model is asked. temperature, top_k, top_p: any of them draws tokens instead of taking the likeliest."""

    adapter: Path | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    raw: bool = False
    macs: bool = True
    html: Path | None = None

    @property
    def given(self) -> list[str]:
        """The options that differ from what they are without a word."""
        flags = {"raw": "--raw", "macs": "--no-macs"}
        unlike = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return [flags.get(name, "--" + name.replace("_", "-")) for name in unlike]

    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate`. Raises KnobError for what no law of tokens can be made of."""
        low = {"temperature": self.temperature, "top_p": self.top_p, "repetition_penalty": self.repetition_penalty}
        for name, value in low.items():
            if value is not None and not value > 0:
                raise KnobError(f"--{name.replace('_', '-')} {value:g} must be above 0. Leave it out for the model's likeliest tokens.")
        if self.top_p is not None and self.top_p > 1:
            raise KnobError(f"--top-p {self.top_p:g} is a share of probability: above 0, at most 1.")
        own = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        drawn = {name: value for name, value in own.items() if value is not None}
        out: dict[str, Any] = {"do_sample": bool(drawn), "seed": self.seed}
        out |= {**{"temperature": 1.0, "top_k": 0, "top_p": 1.0}, **drawn} if drawn else {}
        return out | ({} if self.repetition_penalty is None else {"repetition_penalty": self.repetition_penalty})


def speaks(name: str) -> bool:
    """Whether MODEL is a decoder-only language model; only its configuration is read. Raises CheckpointError for what is no model."""
    from ..models import ofa
    from ..pretrained import config_of, is_language_model, source_of
    from .loading import SHIPPED, sensible

    if name == SHIPPED or ofa.is_checkpoint(name):
        return False
    source = source_of(name)
    sensible(source.place)
    return is_language_model(config_of(source))


def refuse(name: str, wanted: Wanted) -> None:
    """Raises KnobError where a model that is no language model is asked what only one does."""
    if wanted.given:
        raise KnobError(f"{', '.join(wanted.given)} is for language models; {name} is none. Leave it out.")


def engine_for(
    model: Any, method: str | None, exits: Path | None, knobs: dict[str, Any], preset: str | None, adapter: Path | None
) -> Engine:
    """The engine that was saved, one with a trained adapter, or a new one of the method (full depth, if none is named)."""
    from ..bench.decode.ways import with_adapter
    from .loading import engine_of

    if adapter is None:
        return engine_of(model, method if exits is not None else method or FULL, exits, knobs, preset)
    if exits is not None or preset is not None or method not in (None, DRAFTS):
        raise KnobError(f"--adapter is for --method {DRAFTS} alone. Leave --exits and --preset out, and any other method.")
    return with_adapter(model, adapter, **knobs)


def speak(
    name: str, prompt: str | None, method: str | None, exits: Path | None, knobs: dict[str, Any], preset: str | None, wanted: Wanted,
    longest: int | None, as_object: bool,
) -> None:  # fmt: skip
    """One prompt. Raises InputError for an empty one, and what the loader and the loop raise."""
    from ..pretrained import language_model
    from .loading import where

    if prompt is None or not prompt.strip():
        raise InputError("There is no prompt. Write one behind --prompt.")
    sampling = wanted.sampling()
    speaker = language_model(where(name), note=note)
    engine = engine_for(speaker.model, method, exits, knobs, preset, wanted.adapter)
    inputs = {**speaker.prompts([prompt], False if wanted.raw else None), "max_new_tokens": longest or TOKENS, **sampling}
    if wanted.stop:
        inputs |= {"stop_strings": list(wanted.stop), "tokenizer": speaker.tokenizer}
    said = _said(engine, speaker, inputs, as_object)
    macs = _macs(engine, inputs) if wanted.macs and said.written.stopped is None else None
    body = _body(name, prompt, engine, said, inputs, macs)
    if wanted.html is not None:
        from ..bench.heat import write

        write(body, wanted.html)
    if as_object:
        as_json(body)
    else:
        show(*_tables(body))
        if wanted.html is not None:
            show(f"The page: {wanted.html}")
    if said.written.stopped is not None:
        note("Interrupted: this is what was written by then.")


def _said(engine: Engine, speaker: Any, inputs: dict[str, Any], quiet: bool) -> Streamed:
    """The text, streamed to stdout unless it is asked to be quiet."""
    import sys

    from rich.console import Console

    from .running import colour
    from .streaming import stream

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False)
    layers = engine.layers["decoder"]

    def tell(piece: Piece) -> None:
        if not quiet and piece.text:
            console.print(piece.text, style=colour(piece.depth, layers), end="")

    said = stream(engine.with_settings(), speaker.text, inputs, tell)
    if not quiet:
        console.print()
    return said


def _macs(engine: Engine, inputs: dict[str, Any]) -> int | None:
    """Multiply-accumulates of the same text, written a second time: counting slows a run, and would spoil the clock of the first."""
    from ..cost import count_macs

    with count_macs() as counted:
        out = engine.with_settings().generate(**inputs)
    return None if out.drafts.stopped is not None else counted.total


def _body(name: str, prompt: str, engine: Engine, said: Streamed, inputs: dict[str, Any], macs: int | None) -> dict[str, Any]:
    tokens, written = len(said.pieces), said.written
    drafts = None
    if written.rounds:
        share = written.accepted / written.drafted if written.drafted else None
        drafts = {"rounds": written.rounds, "drafted": written.drafted, "accepted": written.accepted, "acceptance": share,
                  "tokens_per_round": tokens / written.rounds}  # fmt: skip
    return {
        "model": name, "task": "continue", "method": engine.method_name, "settings": engine.settings_dict(), "prompt": prompt,
        "prompt_tokens": inputs["input_ids"].shape[1], "answer": said.text,
        "tokens": [{"text": piece.text, "depth": piece.depth, "drafted": piece.drafted} for piece in said.pieces],
        "layers": said.layers, "new_tokens": tokens, "mean_depth": said.mean_depth, "seconds": said.seconds,
        "tokens_per_second": tokens / said.seconds if said.seconds else None, "calls": sum(said.trace.calls.values()),
        "head_calls": said.trace.head_calls, "macs": macs, "drafts": drafts, "skipped_nets": written.skipped,
        "stopped": written.stopped is not None,
    }  # fmt: skip


def _tables(body: dict[str, Any]) -> list[Any]:
    """The legend of the colours, then what it took."""
    from rich.table import Table
    from rich.text import Text

    from .running import SHARES, colour

    layers, drafts = body["layers"], body["drafts"]
    legend, low = Text("depth: "), 1
    for share in (*SHARES, 1.0):
        high = max(low, int(share * layers))
        legend.append(f"{low}..{high} ", style=colour(high, layers))
        low = min(layers, high + 1)
    legend.append(f"of {layers} layers" + (", for a draft that stood those that drafted it" if drafts else ""))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _figures(body):
        table.add_row(Text(name, style="dim"), Text(value))
    return [legend, table]


def _figures(body: dict[str, Any]) -> list[tuple[str, str]]:
    """What it took, in words."""
    from ..bench.report import macs

    tokens, each, drafts = body["new_tokens"], max(1, body["new_tokens"]), body["drafts"]
    speed = f"{tokens} in {body['seconds']:.1f} s, {body['tokens_per_second'] or 0:.1f} a second"
    rows = [("tokens", f"{speed}, after {body['prompt_tokens']} of the prompt")]
    depth = f"{body['mean_depth']:.1f} of {body['layers']} a token"
    rows += [("layers", f"{depth}; {body['calls']} calls, {body['calls'] / each:.1f} a token"), ("head", f"{body['head_calls']} calls")]
    if body["macs"] is not None:
        rows.append(("MACs", f"{macs(body['macs'])}, {macs(body['macs'] / each)} a token, the prompt's included"))
    if drafts:
        share = "none drafted" if drafts["acceptance"] is None else f"{100 * drafts['acceptance']:.0f} %"
        stood = f"{drafts['accepted']} of {drafts['drafted']} stood ({share})"
        rows.append(("drafts", f"{stood} in {drafts['rounds']} rounds, {drafts['tokens_per_round']:.2f} tokens a round"))
    if body["skipped_nets"]:
        rows.append(("nets", f"{body['skipped_nets']} feed-forward nets were left out"))
    return rows
