"""The published methods: one file each in this folder, found by name, imported when asked for."""

from __future__ import annotations

from .. import register
from ..method import Method


def names() -> list[str]:
    """The files of this folder and other packages' entry points `exitwise.methods`, sorted."""
    return register.names(__name__, __path__)


def load(name: str) -> Method:
    """The method in `name`.py, or of another package. Raises UnknownName with the near miss."""
    method = register.load(__name__, __path__, name, "METHOD", "method")
    assert isinstance(method, Method)
    return method
