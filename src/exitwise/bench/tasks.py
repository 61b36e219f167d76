"""What the model is asked: a user's data, in any of the forms of `forms/`, become items with a prompt, references and a way to judge."""

from __future__ import annotations

import difflib
from pathlib import Path

from exitwise.errors import InputError

from . import forms, pictures
from .forms import title
from .forms.hub import is_hub
from .items import CAPTION_PROMPT, KINDS, METRICS, SKIP, Fault, Item, Kind, Reading, Split, Task

__all__ = [
    "CAPTION_PROMPT",
    "KINDS",
    "METRICS",
    "Fault",
    "Item",
    "Kind",
    "Task",
    "is_hub",
    "load",
    "sample",
    "sample_folder",
    "splits",
    "title",
]


def load(
    kind: str,
    source: str | Path,
    split: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    *,
    add_caption: bool = False,
    usual: str = "test",
) -> Task:
    """The task in one split of SOURCE: a folder, one of its files, or a data set on the hub (`forms.hub`). The first bad row raises; with
    `skip_bad` they are kept as `faults`.

    Without `split`: the one that the source is or names, the only one that there is, or the one called `usual`. add_caption: entailment is
    asked with the image's caption in the prompt. Every image is looked at, once: see `pictures.check`. Raises InputError with the place.
    """
    if kind not in KINDS:
        raise InputError(f"task {kind!r} is not known. Tasks: {', '.join(KINDS)}.")
    known = KINDS[KINDS.index(kind)]
    chosen = _chosen(source, split, usual)
    items: list[Item] = []
    faults: list[Fault] = []
    looked: set[pictures.Source] = set()
    for where, make in chosen.rows(Reading(known, add_caption)):
        if limit is not None and len(items) >= limit:
            break
        try:
            item = make()
            if item.image not in looked:
                pictures.check(item.image, where, SKIP)
                looked.add(item.image)
        except InputError as error:
            if not skip_bad:
                raise
            faults.append(Fault(where, str(error).removeprefix(f"{where}: ").removesuffix(f" {SKIP}")))
        else:
            items.append(item)
    if not items:
        first = f" The first: {faults[0].where}: {faults[0].what}" if faults else ""
        raise InputError(f"{chosen.file} has no usable row of the task {kind} ({len(faults)} are bad).{first}")
    return Task(known, chosen.file, tuple(items), tuple(faults), chosen.name)


def sample(kind: str, split: str) -> Task:
    """The embedded sample: split `calibration` (to choose on) or `test` (to judge on)."""
    return load(kind, sample_folder(kind), split)


def sample_folder(kind: str) -> Path:
    """Where the embedded sample of a task lies."""
    return Path(__file__).parent / "sample" / kind


def splits(source: str | Path) -> list[str]:
    """The names of the splits of a source, sorted."""
    return [split.name for split in forms.named(source)[0]]


def _chosen(source: str | Path, name: str | None, usual: str) -> Split:
    """The split that was asked for: by name, by the source itself, the only one, or the usual one."""
    found, name = forms.named(source, name)
    if not found:
        raise InputError(f"{source} is none of the forms that are read. Give a folder that holds {forms.HOLDS}.")
    names = [split.name for split in found]
    if name is None:
        if len(found) == 1:
            return found[0]
        if len(_fitting(found, usual)) != 1:
            raise InputError(f"{source} holds several splits: {', '.join(names)}. Choose one with --split NAME.")
        name = usual
    fitting = _fitting(found, name)
    if len(fitting) != 1:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near and not fitting else ""
        raise InputError(f"{source} has {len(fitting) or 'no'} splits called {name}.{hint} It holds: {', '.join(names)}.")
    return fitting[0]


def _fitting(found: list[Split], name: str) -> list[Split]:
    """The split of this name, or those that may be called so for short: `dev` for snli_ve_dev."""
    return [split for split in found if split.name == name] or [split for split in found if split.name.endswith(f"_{name}")]
