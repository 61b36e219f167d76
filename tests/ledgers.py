"""Ledgers whose truth is known, and live runs that are really replays of them: what the tests of calibration share."""

import torch

from exitwise.calibrate.budget import NEVER, Outcome
from exitwise.calibrate.ledger import DECODER, Ledger
from exitwise.trace import Trace

LAYERS = {"text": 3, DECODER: 4}


def source(rows: int, seed: int, fail: float = 0.3) -> Ledger:
    """Rows whose similarity tells whether an early exit is right: sure rows lose nothing, the others lose with chance `fail` per layer.

    Full depth is right in nine of ten rows. An exit of the encoder before its last layer never matters.
    """
    dice = torch.Generator().manual_seed(seed)
    sure = torch.rand(rows, generator=dice)
    encoder = torch.full((rows, 3), 0.9)
    decoder = (sure[:, None] + 0.02 * torch.arange(4)).expand(3, rows, 4).clone()
    lost = (torch.rand(rows, 4, generator=dice) < fail * (1 - sure[:, None])) & (torch.arange(4) < 3)
    wrong = torch.rand(rows, 1, generator=dice) < 0.1
    return Ledger(("text",), LAYERS, {"text": encoder}, decoder, ~(lost | wrong).expand(3, rows, 4).clone())


class Live:
    """A `run` for live calibration, of rows that are numbers of a ledger's rows. ran: the settings of every call, full depth left out."""

    def __init__(self, book: Ledger) -> None:
        self.book, self.ran = book, []

    def __call__(self, settings, record, rows):
        if any(t < NEVER for t in settings.values()):
            self.ran.append(dict(settings))
        part = self.book.select(torch.tensor(list(rows)))
        depths = part.depths(settings)
        shaped = {s: d[:, None] if s == DECODER else d for s, d in depths.items()}
        last = part.decoder[tuple(n - 1 for s, n in part.layers.items() if s != DECODER)]
        sureness = {**part.encoder, DECODER: last[:, None]} if record else {}
        tokens = {s: torch.ones_like(d) for s, d in shaped.items()}
        return Outcome(part.marks(depths).tolist(), Trace(shaped, dict(part.layers), tokens, sureness=sureness))
