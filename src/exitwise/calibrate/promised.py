"""Thresholds with a promise, from a ledger of answers: of what full depth gets right, at most so much is lost.

Learn-then-Test on a path through the grid of thresholds (Angelopoulos et al. 2021, arXiv:2110.01052). A third of the rows makes the
grid and orders its settings, from the safest to the cheapest; the others test them in that order: no row both chooses and judges.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ..errors import CalibrationError
from .budget import NEVER, Calibration
from .guarantee import ORDERING, front, promise
from .ledger import DECODER, Ledger, thresholds_of


def promised(
    ledger: Ledger,
    keep: float = 0.99,
    confidence: float = 0.95,
    bound: str = "waudby_smith_ramdas",
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
    whole = {s: torch.full((ledger.rows,), n) for s, n in ledger.layers.items()}
    right = ledger.select(ledger.marks(whole).bool().nonzero()[:, 0])
    if right.rows < ORDERING:
        raise CalibrationError(f"Full depth gets {right.rows} of {ledger.rows} rows right. A promise needs a few hundred.")
    drawn = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(right.rows))
    first, rest = right.select(drawn[: right.rows // ORDERING]), right.select(drawn[right.rows // ORDERING :])
    grid = _grid(first, encoder, decoder, minimum)
    lost, cost = zip(*(_judged(first, settings, minimum) for settings in grid), strict=True)
    order = front(np.array([float(each.mean()) for each in lost]), np.array(cost))
    losses = np.stack([_judged(rest, grid[place], minimum)[0].numpy() for place in order], axis=1)
    told = promise(losses, np.array(cost)[order], 1 - keep, confidence, bound)
    chosen = dict.fromkeys((*ledger.streams, DECODER), NEVER) if told.setting is None else grid[order[told.setting]]
    quality, saved = ledger.judge(ledger.depths(chosen, minimum))
    return Calibration(keep, ledger.rows, ledger.full, quality, saved, chosen, promise=told.to_dict())


def _grid(ledger: Ledger, encoder: int, decoder: int, minimum: int) -> list[dict[str, float]]:
    """All combinations of thresholds at quantiles of what these rows measured."""
    own = [thresholds_of(ledger.encoder[s], ledger.layers[s], encoder, minimum) for s in ledger.streams]
    last = thresholds_of(ledger.decoder, ledger.layers[DECODER], decoder, minimum)
    return [dict(zip((*ledger.streams, DECODER), choice, strict=True)) for choice in itertools.product(*own, last)]


def _judged(ledger: Ledger, settings: dict[str, float], minimum: int) -> tuple[Tensor, float]:
    """((rows,) 1.0 where the answer is lost, cost as one minus ETR)."""
    depths = ledger.depths(settings, minimum)
    return 1 - ledger.marks(depths), 1 - ledger.etr(depths)
