"""Options that several commands share, each worded once; and what is written behind --set."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Kind(str, Enum):
    """The two kinds of task."""

    caption = "caption"
    answer = "answer"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="'shipped' (the small unified model), a folder, or a name on the hub.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Task = Annotated[Kind, typer.Option(help="'caption' describes an image; 'answer' chooses among candidates.")]
Data = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Images and rows, in a form that docs/ofa.md names; or one file; or hub:OWNER/NAME[@SPLIT], a data set on the hub.",
        show_default=False,
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Which split: a file without its ending, or a name in it.")]
AddCaption = Annotated[bool, typer.Option("--add-caption", help="Ask entailment with the image's caption (the premise) in the prompt.")]
Method = Annotated[str | None, typer.Option(metavar="NAME", help="See `exitwise methods`. Without it: mue.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="A knob of the method, such as image=0.9. May be repeated.")
]
Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Knobs under a name. For mue: corrected (the default), paper, or released (its code)."),
]
Exits = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Exits that `exitwise calibrate`, `train --method` or Engine.save wrote.")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="The first N items only.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out, count and name them, instead of stopping at the first.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]
Beams = Annotated[int, typer.Option(min=1, help="Beams of caption generation; 1 is greedy.")]


def knobs(given: list[str] | None) -> dict[str, Any]:
    """{'image': 0.9} of ['image=0.9']: values are read as JSON, and as plain words where they are not. Raises KnobError."""
    from ..errors import KnobError

    found: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise KnobError(f"--set {each!r} is not KNOB=VALUE. Write for example --set image=0.9; `exitwise methods mue` lists the knobs.")
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value.strip()
        found[name.strip()] = tuple(read) if isinstance(read, list) else read
    return found
