"""Parts of an unfinished comparison on disk, one JSON file each, written whole or not at all: a run that was stopped goes on with them.

Two runs may share the folder: they write the same, and neither reads half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .journal import UNFINISHED


def key_of(depends: Mapping[str, Any]) -> str:
    """Sixteen letters for all that a result depends on, given as plain values."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Cells:
    """The folder OUT/.unfinished/<name>-<key>."""

    def __init__(self, out: Path, name: str, key: str) -> None:
        self.folder = out / UNFINISHED / f"{name}-{key}"

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once; a file that cannot be read is made anew."""
        file = self.folder / f"{name}.json"
        with suppress(OSError, json.JSONDecodeError):
            return json.loads(file.read_text(encoding="utf-8"))
        made = json.loads(json.dumps(make()))
        part = file.with_name(f"{name}.{uuid.uuid4().hex}.part")
        with suppress(FileNotFoundError):  # the other run has finished and cleared the folder
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(made), encoding="utf-8")
            os.replace(part, file)
        return made

    def done(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # it holds another run's folder, or was never made
            self.folder.parent.rmdir()
