"""One load of an OFA checkpoint, measured in a process of its own: python -m exitwise.bench.loaded FILE [float32|float16|file].

Prints one line of JSON. The most memory held since just before the load (pages of a mapped file included), and seconds; both with every
weight read once, because a mapped file costs nothing until it is read.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from . import record


def status(field: str) -> int | None:
    """A size in bytes from the process's own status, such as VmHWM; None where the system has none."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def peak() -> int:
    """The most memory held so far, in bytes. Not the parent's, which the usual counter hands down."""
    found = status("VmHWM")
    return int(record.peak_gib() * 2**30) if found is None else found


def load(file: str, precision: str) -> dict[str, float]:
    """What loading this file costs. precision: of the weights in memory; 'file' leaves them as they are."""
    import torch

    from ..models.ofa import load_checkpoint

    dtype = None if precision == "file" else getattr(torch, precision)
    before = status("VmRSS") or peak()
    start = time.perf_counter()
    model, _ = load_checkpoint(file, dtype=dtype)
    opened = time.perf_counter() - start
    with torch.no_grad():
        read = sum(float(weight.sum()) for weight in model.state_dict().values() if weight.is_floating_point())
    size = Path(file).stat().st_size
    grown = max(0, peak() - before)
    return {
        "file_bytes": size, "peak_bytes": grown, "ratio": grown / size, "seconds": time.perf_counter() - start, "load_seconds": opened,
        "before_bytes": before, "read": read,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "file")))
