"""What the studies over several seeds share: their options, whether the data is there, and where their key goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from exitwise.bench import record


def given(about: str, work: Path, most: int) -> argparse.Namespace | None:
    """The command line of a study, `work` made ready for it; None where Flickr8k is not there, which is said. most: seeds at most."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".data/flickr8k"))
    parser.add_argument("--work", type=Path, default=work)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="more are quicker on a machine of one's own, and slower beside other work")
    parser.add_argument("--quick", action="store_true", help="a few photos and updates: to see that it works; the keys are not written")
    found = parser.parse_args()
    if len(set(found.seeds)) != len(found.seeds) or not 1 <= len(found.seeds) <= most:
        parser.error(f"--seeds takes 1 to {most} different numbers")
    if not (found.data / "train.jsonl").exists():
        print(f"skipped: {found.data} has no train.jsonl. Unpack Flickr8k there (train.jsonl, dev.jsonl, images/).", file=sys.stderr)
        return None
    torch.set_num_threads(found.threads)
    if found.quick:
        found.work = found.work / "quick"
    return found


def summarise(out: Path, key: str, value: float, interval: Sequence[float]) -> None:
    """Puts a figure and the ends of its interval into OUT/summary.json, beside what is there."""
    record.summarise(out, {key: value, f"{key}_low": interval[0], f"{key}_high": interval[1]})
