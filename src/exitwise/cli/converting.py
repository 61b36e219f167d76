"""`exitwise convert`: from a checkpoint of OFA, as others wrote it, to a folder that every other command takes as MODEL."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .saying import as_json, guarded, note, show

if TYPE_CHECKING:
    from ..models.ofa import CheckpointReport


@guarded
def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .pt, .bin or .safetensors file, or its folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or an empty one.")],
    bpe: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The vocabulary's files, where they do not lie beside the checkpoint.")
    ] = None,
    processor: Annotated[
        bool, typer.Option("--processor/--no-processor", help="Without it: the weights alone, no vocabulary needed.")
    ] = True,
    decomposed: Annotated[
        bool | None,
        typer.Option(
            "--decomposed/--fused", help="Whether image and text walk the encoder apart. Without it: as the file says.", show_default=False
        ),
    ] = None,
    as_object: options.Json = False,
) -> None:
    """Convert a checkpoint of OFA once, to a folder that all commands take.

    Reads official fairseq files (ofa_base.pt, caption_base_best.pt) and the
    folders of the fork of transformers (pytorch_model.bin, safetensors). The
    size is told from the weights. A file is read as data: nothing in it is
    run. Anything missing or unknown in it is an error, and nothing is
    overwritten.

    The vocabulary is vocab.json and merges.txt, or encoder.json, vocab.bpe and
    dict.txt (in utils/BPE of OFA's repository).

    \b
    Examples:
      exitwise convert ofa_base.pt ofa-base --bpe utils/BPE
      exitwise convert OFA-tiny ofa-tiny --json
      exitwise run ofa-base --image dog.jpg
    """
    from transformers.utils import logging

    from ..models.ofa import convert_checkpoint

    logging.disable_progress_bar()
    report = convert_checkpoint(checkpoint, out, decomposed, bpe, processor)
    if as_object:
        as_json({"out": str(out), "processor": processor, **report.to_dict()})
        return
    show(_table(report, out))
    if report.sections:
        note(f"Not looked at in {report.file}: {', '.join(report.sections)}.")
    if not processor:
        note("There is no processor in the folder: texts and images must be prepared by hand.")


def _table(report: CheckpointReport, out: Path) -> Any:
    """What the file was, then each kind of fate with its number of tensors; --json has every name."""
    from rich.table import Table
    from rich.text import Text

    walk = "decomposed" if report.decomposed else "fused"
    grids = ", ".join(f"{16 * rows} x {16 * columns} px" for rows, columns in report.image_grids)
    told = f"OFA-{report.size} ({report.layout}, {report.parameters / 1e6:.0f} M parameters, {report.dtype}, {walk}, {grids}) -> {out}"
    table = Table(title=Text(told), title_justify="left")
    for name in ("tensors", "what became of them"):
        table.add_column(name, justify="right" if name == "tensors" else "left", overflow="fold")
    table.add_row(str(len(report.used)), "used")
    table.add_row(str(len(report.renamed)), "of them under another name")
    for kind, notes in (("of them: ", report.changed), ("missing, so ", report.missing), ("left over: ", report.left_over)):
        for why, count in Counter(notes.values()).items():
            table.add_row(str(count), Text(kind + why))
    return table
