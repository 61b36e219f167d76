"""A data set by its name on the hub, through the package `datasets` (an extra): `hub:OWNER/NAME`, as every `--data` takes it.

    hub:OWNER/NAME[@SPLIT][,config=NAME][,revision=NAME][,COLUMN'S ROLE=COLUMN ...][,labels=A/B/C]

A folder that `datasets` wrote (`save_to_disk`) or can read (parquet, an image folder) may stand for OWNER/NAME. Which column is what is
read off types and usual names, see `columns`; what is not recognised is named after a comma. Images stay in the data set's own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from exitwise.errors import InputError

from ..items import SKIP, Item, Reading, Row, Split
from ..pictures import Source, Stored
from . import columns, rows

PREFIX = "hub:"
WAY = f"{PREFIX}OWNER/NAME[@SPLIT][,ROLE=COLUMN]"
EXTRA = "pip install 'exitwise[data]'"
OPTIONS = ("config", "revision", "labels")


@dataclass(frozen=True)
class Address:
    """What stands behind `hub:`. chosen: pairs of what was said after commas."""

    name: str
    split: str | None
    chosen: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}"

    def option(self, name: str) -> str | None:
        """`config`, `revision` or `labels`, where it was said."""
        return dict(self.chosen).get(name)

    def roles(self) -> dict[str, str]:
        """Role -> column, as the user names them."""
        return {role: column for role, column in self.chosen if role not in OPTIONS}


def is_hub(source: str | Path) -> bool:
    """Whether a source is a name for `datasets`, and not a folder."""
    return str(source).startswith(PREFIX)


def parsed(source: str | Path) -> Address:
    """The parts of a source. Raises InputError for what is not of that form.

    >>> parsed("hub:someone/photos@test,captions=texts")
    Address(name='someone/photos', split='test', chosen=(('captions', 'texts'),))
    """
    whole, *pairs = str(source).removeprefix(PREFIX).split(",")
    name, _, split = whole.partition("@")
    chosen: dict[str, str] = {}
    for pair in pairs:
        role, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not role or not column or role in chosen:
            raise InputError(
                f"{source}: {pair!r} is not ROLE=COLUMN, each once. Write {WAY}, such as hub:someone/photos@test,captions=texts."
            )
        chosen[role] = column
    if not name.strip():
        raise InputError(f"{source}: the name is empty. Write {WAY}.")
    columns.known([role for role in chosen if role not in OPTIONS], str(source), OPTIONS)
    return Address(name.strip(), split.strip() or None, tuple(chosen.items()))


def splits(address: Address) -> list[Split]:
    """The splits of the data set, by name. Raises InputError where it cannot be had."""
    found = _loaded(address.name, address.option("config"), address.option("revision"))
    return [Split(name, Path(str(address)), partial(_rows, address, name, found[name])) for name in sorted(found)]


@cache
def _loaded(name: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    """Split -> `datasets.Dataset`. A second call with the same words gives the same object."""
    try:
        import datasets
    except ImportError as problem:
        raise InputError(f"{PREFIX}{name} is read by the package `datasets`, which is not installed: {EXTRA}.") from problem
    try:
        if any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            found: Any = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config, revision=revision)
    except _refusals(datasets) as problem:
        said = " ".join(str(problem).split())[:300]
        raise InputError(
            f"The data set {name!r} could not be had: {type(problem).__name__}, {said}. Check its name (OWNER/NAME on the hub, or a folder "
            "that `datasets` reads), its config (,config=NAME) and the connection; what was fetched once is read without one."
        ) from problem
    return found if isinstance(found, Mapping) else {str(found.split or "train"): found}


def _refusals(datasets: Any) -> tuple[type[BaseException], ...]:
    """What `datasets` and what it stands on raise for a name, a file or a line that fails."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, HfHubHTTPError)


def _rows(address: Address, split: str, table: Any, reading: Reading) -> Iterator[Row]:
    """Rows one at a time; only the columns that are used are read, and images not decoded. Equal images of rows are one place."""
    used = columns.resolve(table.features, reading.kind, address.roles(), address.option("labels"), f"{address}@{split}")
    table = columns.undecoded(table.select_columns(sorted({*used.columns.values()})), used.columns["image"])
    answers = rows.answers_of(table.unique(used.columns["answer"])) if "answer" in used.columns else ()
    places: dict[bytes, Stored] = {}
    for number in range(len(table)):
        where = f"{address}@{split}, row {number + 1}"
        yield where, partial(_item, reading, where, table, number, used, answers, places)


def _item(
    reading: Reading, where: str, table: Any, number: int, used: columns.Columns, answers: tuple[str, ...], places: dict[bytes, Stored]
) -> Item:
    row = table[number]
    read = used.row(row, where)
    image = _image(row[used.columns["image"]], where, table, number, used.columns["image"], places)
    name = str(read.pop("name", None) or image.name)
    return rows.item_of(reading, name, where, image, {**read, "image": name}, answers)


def _image(value: Any, where: str, table: Any, number: int, column: str, places: dict[bytes, Stored]) -> Source:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data:
        place = Stored(str(table._fingerprint), number, partial(_bytes, table, column))
        return places.setdefault(blake2b(data, digest_size=16).digest(), place)
    if path and Path(path).is_file():
        return Path(path)
    raise InputError(f"{where}: the column {column!r} has no image{f': there is no file {path}' if path else ''}. {SKIP}")


def _bytes(table: Any, column: str, number: int) -> bytes:
    value = table[number][column]
    read: bytes = value["bytes"] if isinstance(value, dict) else value
    return read
