"""A file of JSON objects, one a line, plain or gzipped, read line by line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, parsed row or the error) of every line that is not blank."""
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield f"{file.name}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    yield f"{file.name}:{number}", error


def opened(file: Path) -> IO[str]:
    """The file's text, unpacked where its name ends in .gz; bytes that are no UTF-8 are replaced."""
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8", errors="replace")
    return file.open(encoding="utf-8", errors="replace")
