"""Models that no library offers and that the methods of Exitwise need, as ordinary `transformers` models; and the small one that
is shipped."""

from __future__ import annotations

from pathlib import Path


def shipped_path() -> Path:
    """The folder of the shipped unified model: `from_pretrained` reads it. Its MODEL_CARD.md says what it was trained on and how
    well it does."""
    return Path(__file__).parent / "shipped"
