"""What a shallow exit said of tokens, and what the last layer says of the same tokens later: evidence for a threshold, while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reading import Measure, View
from .backbone import Backbone
from .plan import Watch
from .stair import Stair


class Judged:
    """The tokens of each row that a shallow exit has judged and the last layer has not seen yet. measure: of the rule, which is asked at
    one depth only, so that each token is judged once; missing keys and values are made by running the layers: `settle` finds each state at
    full depth."""

    def __init__(self, watch: Watch, measure: Measure, rows: int) -> None:
        self.watch, self.measure = watch, measure
        self.said: list[list[tuple[float, int]]] = [[] for _ in range(rows)]  # how sure, and the likeliest token

    def note(self, view: View) -> None:
        """The exit has judged the newest token of every row."""
        for said, sure, pick in zip(self.said, self.measure(view).tolist(), view.logits.argmax(-1).tolist(), strict=True):
            said.append((sure, pick))

    def settle(self, backbone: Backbone, stair: Stair, rows: Sequence[int], logits: Tensor) -> None:
        """All tokens of these rows stand at full depth. logits (all rows, vocabulary): of their newest tokens; those that waited are read
        here, in one call of the head."""
        if not rows:
            return
        waited = [len(self.said[row]) - 1 for row in rows]
        states = [stair.state(row, stair.length(row) - 1 - count, stair.length(row) - 1) for row, count in zip(rows, waited, strict=True)]
        deep: list[list[int]] = [[] for _ in rows]
        if any(waited):
            read = backbone.readout(torch.cat(states, 1))[0].argmax(-1)
            deep = [part.tolist() for part in torch.split(read, waited)]
        newest: list[int] = logits.argmax(-1).tolist()
        for row, late in zip(rows, deep, strict=True):
            said, self.said[row] = self.said[row], []
            wanted = [*late, newest[row]]
            self.watch.see([sure for sure, _ in said], [pick == word for (_, pick), word in zip(said, wanted, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows stay, in this order."""
        self.said = [self.said[row] for row in rows]
