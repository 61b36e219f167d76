"""A text of a language model as a page: its tokens shaded by depth, and a heat map of tokens and layers. One file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ..errors import InputError
from .report import macs, shade

LINE = 48  # tokens of a line of the map


def write(said: Mapping[str, Any], file: str | Path) -> Path:
    """Writes the page and returns its path. said: what `exitwise run --json` says. Raises InputError where it cannot be written."""
    file = Path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(said), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"The page {file} cannot be written ({problem}). Give --html a file in a folder of yours.") from problem
    return file


def render(said: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"shade": shade, "seen": seen, "macs": macs}
    tokens = list(said["tokens"])
    lines = [tokens[start : start + LINE] for start in range(0, len(tokens), LINE)]
    return environment.get_template("heat.html").render(said=said, lines=lines, columns=LINE, depths=sorted({t["depth"] for t in tokens}))


def seen(text: str) -> str:
    """A token's text in one line that shows; a dot stands for what has no letter."""
    out = "".join(letter if letter.isprintable() else "↵" if letter == "\n" else "·" for letter in text).strip()
    return out or "·"
