"""A ledger of real answers in files: recorded once, part by part, so that a recording that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..calibrate.ledger import DECODER, Ledger
from ..engine import Engine
from ..errors import CheckpointError
from ..kept import fingerprint
from .ask import Asker
from .choosing import Tick, ledger
from .tasks import Item

PART = 120  # items of a part


def recorded(asker: Asker, engine: Engine, items: Sequence[Item], folder: Path, tick: Tick = lambda _: None) -> Ledger:
    """Every item at every exit, from the parts in `folder` and, where they are missing, from the model.

    Rows stand in their part's order of batches. Raises CheckpointError for a damaged part; parts of another model, other items or another
    rule for leaving bear other names, and are left alone.
    """
    base = f"{fingerprint(engine.model)}{engine.method_name}{sorted(engine.settings_dict().items())}"
    parts = []
    for start in range(0, len(items), PART):
        some = items[start : start + PART]
        named = "".join(f"{item.name}\0{item.prompt}\0{item.references}\0{item.candidates}\n" for item in some)
        file = folder / f"{start:06d}-{hashlib.sha256((base + named).encode()).hexdigest()[:16]}.safetensors"
        if not file.exists():
            keep(ledger(asker, engine, asker.prepare(some, lambda: tick("images")), tick=tick), file)
        parts.append(read(file))
    return Ledger.cat(parts)


def keep(book: Ledger, file: Path) -> None:
    """Writes a ledger, at once or not at all."""
    tensors = {f"encoder.{s}": book.encoder[s].contiguous() for s in book.streams}
    tensors |= {DECODER: book.decoder.contiguous(), "right": book.right.contiguous()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    save_file(tensors, part, metadata={"streams": " ".join(book.streams)})
    part.replace(file)


def read(file: Path) -> Ledger:
    """A ledger that `keep` wrote. Raises CheckpointError if it is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            streams = tuple((opened.metadata() or {})["streams"].split())
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError) as problem:
        raise CheckpointError(f"{file} is damaged ({problem}). Delete it: it will be recorded again.") from None
    encoder = {s: tensors[f"encoder.{s}"] for s in streams}
    layers = {**{s: v.shape[-1] for s, v in encoder.items()}, DECODER: tensors[DECODER].shape[-1]}
    return Ledger(streams, layers, encoder, tensors[DECODER], tensors["right"])
