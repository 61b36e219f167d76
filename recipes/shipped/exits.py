"""Chooses the exits that are shipped with the model, on the held-out calibration splits, and writes src/exitwise/models/shipped/exits.

heldout.py makes the splits. Besides MuE's thresholds, the folder of a task holds what it is compared with: one exit for both streams,
static depth and random exits at its cost, all chosen on the same items. Run: python recipes/shipped/exits.py [answer|caption]
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from exitwise.bench import tasks
from exitwise.bench.ask import Asker, load_pair
from exitwise.bench.demo import KEEP
from exitwise.bench.ways import Request, choose, keep
from exitwise.models import shipped_path

HELDOUT = Path(".data/heldout")
MOST = 800  # items: a ledger of answers runs the model once for each pair of encoder depths
REQUESTS = {
    "answer": Request(keep=KEEP["answer"], margin=1.5),  # standard errors
    "caption": Request(budget=0.49),  # a standard error of CIDEr-D is 5 % of it on these items, so that it cannot tell 98 % from 100 %
}


def main(kinds: list[str]) -> None:
    """Calibrates for the tasks, both by default."""
    asker = Asker(*load_pair(None))
    for kind in kinds or tasks.KINDS:
        items = asker.prepare(tasks.load(kind, HELDOUT / kind, "calibration").items[:MOST])
        ways, found = choose(asker, kind, items, REQUESTS[kind], lambda what: print(what, file=sys.stderr))
        folder = shipped_path() / "exits" / kind
        shutil.rmtree(folder, ignore_errors=True)
        keep(ways, folder)
        told = {name: found[name] for name in ("rows", "quality_full", "quality", "etr", "settings", "tried")}
        print(json.dumps({"task": kind, **told, **{way.key: way.settings for way in ways[3:]}}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
