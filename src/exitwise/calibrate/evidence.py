"""Evidence, gathered row by row, that a mean loss is above a risk: valid whenever one looks, however often.

A gambler bets that losses are above the risk. While they are not, his capital is a supermartingale that begins at 1, so that it ever
reaches 1/alpha with probability alpha at most (Ville 1939). Bets: Waudby-Smith & Ramdas 2024, arXiv:2010.09686. Part of the capital waits
and begins anew at every row, so that a long good time does not use up what a later change must be seen with (Shin, Ramdas & Rinaldo 2022,
arXiv:2203.03532, whose sums of late starters are here weighted to be one gambler).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import CalibrationError, KnobError

CAP = 0.75  # the most of its capital that a bet may lose in one row


class Evidence:
    """The capital against "the mean loss is at most risk", for one stream of losses, or for several side by side (`streams`).

    The start at row t has the share 1 / (t (t + 1)) of the capital: a change after t good rows is seen about log(t (t + 1)) / growth rows
    later than one at the beginning. Each start is split alike over `bets`. Losses need not be independent: it is enough that, whatever
    came before, the next is at most `risk` in the mean. Raises KnobError for a risk outside (0, 1).
    """

    def __init__(self, risk: float, streams: tuple[int, ...] = ()) -> None:
        if not 0 < risk < 1:
            raise KnobError(f"risk={risk} is not a share of loss that can be watched. Allowed: above 0, below 1.")
        self.risk, self.rows = risk, 0
        most = CAP / risk
        sizes = 2.0 ** np.arange(-2, 12)
        self.bets: NDArray[np.float64] = np.append(sizes[sizes < most], most).reshape(-1, *[1] * len(streams))
        self.staked: NDArray[np.float64] = np.zeros((len(self.bets), *streams))

    def add(self, loss: ArrayLike) -> None:
        """One more row of every stream: losses in [0, 1], () or (streams,). Raises CalibrationError for another."""
        given = np.asarray(loss, dtype=np.float64)
        if given.shape != self.staked.shape[1:] or not ((given >= 0) & (given <= 1)).all():
            raise CalibrationError(f"A loss of {given} cannot be counted. Give numbers in 0..1, no NaN, of shape {self.staked.shape[1:]}.")
        self.rows += 1
        starts = 1 / (self.rows * (self.rows + 1)) / len(self.bets)
        with np.errstate(over="ignore"):
            self.staked = np.minimum((self.staked + starts) * (1 + self.bets * (given - self.risk)), 1e300)

    @property
    def capital(self) -> NDArray[np.float64]:
        """What the gambler has now, () or (streams,), with what waits for later starts; 1 at the beginning."""
        return np.asarray(self.staked.sum(0) + 1 / (self.rows + 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"risk": self.risk, "rows": self.rows, "staked": self.staked.tolist()}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Evidence:
        """The inverse of to_dict, for one stream."""
        out = Evidence(body["risk"])
        out.rows, out.staked = int(body["rows"]), np.array(body["staked"], dtype=np.float64).reshape(out.staked.shape)
        return out
