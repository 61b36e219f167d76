"""The command line: what the library does, for a shell. Nothing here imports torch before a command runs, so that --help is quick."""

from __future__ import annotations

from .app import app


def main() -> None:
    """Entry point of the command `exitwise`."""
    app()


__all__ = ["app", "main"]
