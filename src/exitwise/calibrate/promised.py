"""Thresholds with a promise, from a ledger of answers: of what full depth gets right, at most so much is lost.

Learn-then-Test on a path through the grid of thresholds (Angelopoulos et al. 2021, arXiv:2110.01052). A third of the rows makes the
grid and the path, from full depth to the cheapest (`descent`); the others test along it: no row both chooses and judges.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..errors import CalibrationError
from .bounds import Floats
from .budget import NEVER, Calibration, enough
from .descent import descent, smoothed
from .guarantee import ORDERING, promise
from .ledger import DECODER, Ledger, grid, thresholds_of
from .replay import replay

HALF = 0.5  # of a row is lost in any step of the path, for the little that a few hundred rows show

LOST = "an answer that the exits get wrong, among those that full depth gets right"


def promised(
    ledger: Ledger,
    keep: float = 0.99,
    confidence: float = 0.95,
    bound: str = "clopper_pearson",
    minimum: int = 1,
    encoder: int = 10,
    decoder: int = 30,
    seed: int = 0,
) -> Calibration:
    """The cheapest thresholds of which it holds, with `confidence`: new answers that full depth gets right stay right in a share of `keep`.

    Rows that full depth gets wrong cannot be lost and are left out; so accuracy too keeps `keep` of full depth's, or more. Where nothing
    can be promised all thresholds are 1, and `promise` says how many rows would do. encoder, decoder: points of the grid of thresholds.
    quality and etr are those of all rows. Raises CalibrationError for too few rows to split and for a share outside (0, 1).
    """
    if not 0 < keep < 1:
        raise CalibrationError(f"keep={keep} cannot be promised. Allowed: above 0 and below 1; 0.99 loses one right answer of a hundred.")
    enough(ledger.rows, ledger.layers)
    right = ledger.select(ledger.marks(ledger.whole()).bool().nonzero()[:, 0])
    if right.rows < ORDERING:
        raise CalibrationError(f"Full depth gets {right.rows} of {ledger.rows} rows right. A promise needs a few hundred.")
    drawn = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(right.rows))
    first, rest = right.select(drawn[: right.rows // ORDERING]), right.select(drawn[right.rows // ORDERING :])
    path, cost = _path(first, encoder, decoder, minimum)
    losses = np.stack([1 - rest.marks(rest.depths(settings, minimum)).numpy() for settings in path], axis=1)
    told = replace(promise(losses, cost, 1 - keep, confidence, bound), loss=LOST)
    chosen = dict.fromkeys((*ledger.streams, DECODER), NEVER) if told.setting is None else path[told.setting]
    quality, saved = ledger.judge(ledger.depths(chosen, minimum))
    return Calibration(keep, ledger.rows, ledger.full, quality, saved, chosen, promise=told.to_dict())


def _path(first: Ledger, encoder: int, decoder: int, minimum: int) -> tuple[list[dict[str, float]], Floats]:
    """(settings to test in turn, their costs), from the rows that order alone; all of them are right at full depth."""
    last = thresholds_of(first.decoder, first.layers[DECODER], decoder, minimum)
    found = replay(first, grid(first, encoder, minimum), last, minimum)
    shape = [len(thresholds_of(first.encoder[s], first.layers[s], encoder, minimum)) for s in first.streams]
    loss, cost = ((1 - share).reshape(*shape, len(last)) for share in (found.right / found.rows, found.etr()))
    places = descent(smoothed(loss), cost, HALF / found.rows)
    flat = [int(np.ravel_multi_index(place, cost.shape)) for place in places]
    return [found.settings(*divmod(place, len(last))) for place in flat], cost.ravel()[flat]
