"""The errors that Exitwise raises, in one tree, so that a program can catch exactly as much as it means to.

ExitwiseError
├── DepthError        a depth outside 1..n of a stack
├── KnobError         an option of a method outside its range, or one that the method does not have
├── UnknownName       a method or a family that is not registered (names the near miss)
├── FamilyError       a model whose layers could not be found, or that failed the self-test
├── AttachError       a model that is already carrying exits
├── CacheError        a cache of keys and values that cannot be jagged
├── FingerprintError  exits that were saved for another model
├── CalibrationError  a calibration that cannot be made from the data given
├── InputError        an image, a text or a row of data that cannot be used
├── CheckpointError   a file of weights or settings that does not fit
└── BuildError        a kernel that could not be compiled here
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExitwiseError(Exception):
    """Root of everything that Exitwise raises on purpose."""


class DepthError(ExitwiseError, ValueError):
    """A depth outside 1..n."""


class KnobError(ExitwiseError, ValueError):
    """An option of a method that does not exist or is outside its range."""


class UnknownName(ExitwiseError, KeyError):
    """A name that no file in the folder carries."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FamilyError(ExitwiseError, TypeError):
    """A model whose stacks could not be found, or whose walk is not the model itself."""


class AttachError(ExitwiseError, RuntimeError):
    """The model already carries exits."""


class CacheError(ExitwiseError, TypeError):
    """A cache that Exitwise cannot keep at different depths."""


class FingerprintError(ExitwiseError, ValueError):
    """Saved exits belong to another base model."""


class CalibrationError(ExitwiseError, ValueError):
    """A calibration that the data or the request do not allow."""


class InputError(ExitwiseError, ValueError):
    """An item of the user's data that cannot be used; the message names the item."""


class CheckpointError(ExitwiseError, ValueError):
    """A file of weights or settings that does not fit the model."""


class BuildError(ExitwiseError, RuntimeError):
    """A kernel that could not be compiled on this machine."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is not known: what was given, the near miss, and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownName(f"No {kind} is called {given!r}.{hint} Known: {', '.join(names)}.")
