"""What an unfinished run has done so far, kept on disk batch by batch, so that the same run, begun anew, goes on where it was stopped.

OUT/.unfinished/<name>-<key>/ holds the exits that were chosen and said.jsonl, one line for each batch of each way. The key is made of
all that the answers depend on: model, configuration, items, exits. The folder goes when the run is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cost import count_macs
from ..trace import Trace
from .ask import Asked, Asker, Said
from .ways import Way, keep, kept

UNFINISHED = ".unfinished"
ROWS = 16  # of a batch
FOUND, SAID = "found.json", "said.jsonl"


class Journal:
    """The folder of one run. depends: all that its answers depend on, as plain values."""

    def __init__(self, out: Path, name: str, depends: Mapping[str, Any]) -> None:
        text = json.dumps(depends, sort_keys=True, default=str)
        self.folder = out / UNFINISHED / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._known = {(line["way"], tuple(line["places"])): line for line in whole_lines(self.folder / SAID)}

    @property
    def batches(self) -> int:
        """Batches that an earlier, stopped run has left."""
        return len(self._known)

    def ways(self, asker: Asker, choose: Callable[[], tuple[list[Way], dict[str, Any]]]) -> tuple[list[Way], dict[str, Any]]:
        """What `choose` gives, chosen once: a run that goes on takes the exits that were kept."""
        file = self.folder / FOUND
        if not file.exists():
            ways, found = choose()
            keep(ways, self.folder / "exits")
            part = file.with_suffix(".part")
            part.write_text(json.dumps(found), encoding="utf-8")
            os.replace(part, file)  # last, and whole: it says that the exits are all there
        return kept(asker, self.folder / "exits"), json.loads(file.read_text(encoding="utf-8"))

    def ask(self, asker: Asker, way: Way, items: Sequence[Asked]) -> tuple[Said, float]:
        """(what the way says of all items, MACs in all without the stem); batches that are known are not run.

        A way that draws is known as a whole or not at all: its draws go on from batch to batch.
        """
        total = 0.0
        known = self._known
        if "seed" in way.engine.settings_dict() and any((way.key, tuple(places)) not in known for places in asker.groups(items, ROWS)):
            known = {}

        def through(places: list[int], run: Callable[[], Said]) -> Said:
            nonlocal total
            line = known.get((way.key, tuple(places)))
            if line is None:
                with count_macs() as counted:
                    said = run()
                line = {"way": way.key, "places": places, "macs": counted.total, **_plain(said)}
                self._append(line)
            total += line["macs"]
            return _said(line)

        return asker.ask(way.engine, items, ROWS, through=through), total

    def done(self) -> None:
        """Nothing is left to go on with."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds another run's folder, or was never made
            self.folder.parent.rmdir()

    def _append(self, line: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / SAID).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a last one that was torn off is taken out of the file, and no file has none."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # what follows would be glued to the torn line
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _plain(said: Said) -> dict[str, Any]:
    return {"texts": said.texts, "tokens": said.tokens, "trace": said.trace.to_dict()}


def _said(line: Mapping[str, Any]) -> Said:
    return Said(line["texts"], Trace.from_dict(line["trace"]), [[(word, depth) for word, depth in words] for words in line["tokens"]])
