"""Recordings to transcribe: read from files, cut into pieces, and turned into what a speech model hears."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

RATE = 16_000  # samples a second that all of this is about
KINDS = (".npy", ".wav")


@dataclass(frozen=True)
class Clip:
    """Sound of one speaker. recording: the file that it was cut from; start: its first second there; samples: (n,) float32 in -1..1."""

    recording: str
    start: float
    samples: NDArray[np.float32]

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def read(file: Path) -> Clip:
    """A recording of 16 kHz, one channel: a numpy array of floats, or a WAV file of 16 bits. Raises InputError for anything else."""
    if file.suffix == ".npy":
        samples = np.load(file, allow_pickle=False)
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            raise InputError(f"{file.name} holds {samples.dtype} {samples.shape}. Give one channel of floats at {RATE} samples a second.")
        return Clip(file.stem, 0.0, samples.astype(np.float32))
    with wave.open(str(file), "rb") as opened:
        found = opened.getnchannels(), opened.getsampwidth(), opened.getframerate()
        raw = opened.readframes(opened.getnframes())
    if found != (1, 2, RATE):
        raise InputError(f"{file.name} has {found[0]} channels of {8 * found[1]} bits at {found[2]} Hz. Give one of 16 bits at {RATE} Hz.")
    return Clip(file.stem, 0.0, (np.frombuffer(raw, "<i2") / 32768).astype(np.float32))


def recordings(folder: Path) -> list[Clip]:
    """All recordings of a folder, by name. Raises InputError if there are none."""
    files = sorted(file for file in folder.glob("*") if file.suffix in KINDS)
    if not files:
        raise InputError(f"{folder} holds no recording. Allowed: {', '.join(KINDS)}, one channel at {RATE} samples a second.")
    return [read(file) for file in files]


def pieces(clip: Clip, seconds: float, every: float) -> list[Clip]:
    """Pieces of so many seconds, one beginning `every` seconds, the last one at the recording's end; a shorter recording is one piece.

    >>> [round(p.start, 2) for p in pieces(Clip("a", 0.0, np.zeros(11 * RATE, np.float32)), 5.0, 2.5)]
    [0.0, 2.5, 5.0, 6.0]
    """
    size, step = int(seconds * RATE), int(every * RATE)
    last = max(0, len(clip.samples) - size)
    starts: Sequence[int] = sorted({*range(0, last, step), last})
    return [Clip(clip.recording, clip.start + s / RATE, clip.samples[s : s + size]) for s in starts]
