"""Where an item's image lies (a file, base64 text inside one, a row of a table), and how it is decoded only when it is asked for."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image

from exitwise.errors import InputError

_STANDARD = bytes.maketrans(b"-_", b"+/")  # both alphabets of base64 are read
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Base64 text inside a file: `length` bytes from `start`. Equal images of a file are one and the same place."""

    file: Path
    start: int
    length: int

    @property
    def name(self) -> str:
        return f"in {self.file.name}"

    def read(self) -> bytes:
        """The image's own bytes."""
        with self.file.open("rb") as opened:
            opened.seek(self.start)
            return unpacked(opened.read(self.length))


@dataclass(frozen=True, slots=True)
class Stored:
    """An image in a row of a table that holds images itself. table: what tells it from others. fetch: row -> the image's bytes."""

    table: str
    row: int
    fetch: Callable[[int], bytes] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"of row {self.row + 1}"

    def read(self) -> bytes:
        """The image's own bytes."""
        return self.fetch(self.row)


Source = Path | Embedded | Stored


def stamp(source: Source) -> tuple[str, ...]:
    """What changes when the image does."""
    if isinstance(source, Stored):
        return source.table, str(source.row)
    file, place = (source, ()) if isinstance(source, Path) else (source.file, (source.start, source.length))
    told = file.stat()
    return tuple(map(str, (file.resolve(), told.st_size, told.st_mtime_ns, *place)))


def unpacked(text: bytes) -> bytes:
    """The bytes that base64 text stands for. Raises ValueError for a letter outside the alphabet and for a cut text."""
    try:
        return base64.b64decode(text.translate(_STANDARD), validate=True)
    except binascii.Error as error:
        raise ValueError(f"broken base64: {error}") from error


def decode(source: Source, where: str, hint: str = "") -> Image.Image:
    """The whole image. Raises InputError that begins with `where` and ends with `hint`."""
    try:
        with _opened(source) as data, Image.open(data) as opened:
            opened.load()
            return opened.copy()
    except _UNREADABLE as error:
        raise _refused(source, where, error, hint) from error


def check(source: Source, where: str, hint: str = "") -> None:
    """Raises the error that `decode` would, without decoding a JPEG whose head can be read and whose end is there."""
    try:
        with _opened(source) as data, Image.open(data) as opened:
            if opened.format != "JPEG" or not _ended(data):
                opened.load()
    except _UNREADABLE as error:
        raise _refused(source, where, error, hint) from error


def _opened(source: Source) -> IO[bytes]:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source.read())


def _ended(jpeg: IO[bytes]) -> bool:
    jpeg.seek(-2, io.SEEK_END)
    return jpeg.read() == b"\xff\xd9"


def _refused(source: Source, where: str, error: BaseException, hint: str) -> InputError:
    return InputError(f"{where}: the image {source.name} cannot be read ({error}). {hint}".rstrip())
