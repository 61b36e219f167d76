"""`exitwise cut`: the first N layers of a language model, as a checkpoint that any other program loads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .saying import as_json, guarded, note, show


@guarded
def cut(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A language model: a folder, a GGUF file, or a name on the hub.")],
    depth: Annotated[int, typer.Option(metavar="N", help="Layers to keep, from the first on.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder, or an empty one.", show_default=False)],
    as_object: options.Json = False,
) -> None:
    """Cut a language model down to its first N layers.

    Writes an ordinary checkpoint with its tokenizer: the weights are the
    model's own, unchanged, and what it says is what the whole model would say
    if every token left after layer N. Worth it where exits were trained; an
    untrained model says little before its last layers. Nothing is overwritten.

    \b
    Examples:
      exitwise cut my-sorted-model --depth 12 --out my-model-12
      exitwise cut SmolLM2.gguf --depth 20 --out smol-20 --json
    """
    from ..cutting import cut as write
    from ..errors import CheckpointError
    from ..pretrained import causal_class, source_of, tokenizer_of, weights_of
    from .loading import sensible, where

    source = source_of(where(model))
    sensible(source.place)
    whole = weights_of(source, causal_class(source), "auto" if source.gguf is None else None)
    try:
        tokenizer = tokenizer_of(source)
    except CheckpointError as problem:
        tokenizer = None
        note(f"No tokenizer is copied: {problem}")
    done = write(whole, depth, out, tokenizer)
    if as_object:
        as_json(asdict(done))
        return
    before, after = (count / 1e6 for count in done.parameters)
    show(f"{done.depth} of {done.layers} layers, {after:.1f} of {before:.1f} M parameters: {done.out}")
