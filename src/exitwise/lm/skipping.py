"""Layers without their feed-forward nets, where these change a state little (FFN-SkipLLM, Jaiswal et al. 2024, arXiv:2404.03865).

Attention always runs, so that every layer has keys and values of every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..criteria import cosine
from ..errors import FamilyError
from .backbone import Backbone
from .plan import SkipFFN
from .store import Span, Store


class Skipper:
    """One step: rows that are saturated at a layer do without the nets of those that follow, until the cold ones at the top.

    Raises FamilyError for a model whose layers are not known by their halves.
    """

    def __init__(self, backbone: Backbone, skip: SkipFFN, rows: int, step: int) -> None:
        if any(lean is None for lean in backbone.leans):
            raise FamilyError(
                f"The halves of {type(backbone.layers[0]).__name__} are not known, so that its feed-forward net cannot be left out alone. "
                "This method needs pre-norm layers with gated nets, without hooks."
            )
        self.backbone, self.skip, self.warm = backbone, skip, step < skip.warm
        self.saturated = torch.zeros(rows, dtype=torch.bool)
        self.skipped = 0

    def run(self, layer: int, states: Tensor, span: Span, store: Store, aids: dict[str, Any], mask: Tensor | None) -> Tensor:
        """In the place of `Backbone.run`, for one new token of every row."""
        lean = self.backbone.leans[layer]
        assert lean is not None
        self.backbone.count(states)
        x = lean.attention(states, span, store, aids, mask, self.backbone.window(layer))
        bottom, top = self.skip.cold
        if self.warm or layer < bottom or layer >= self.backbone.depth - top:
            return lean.ffn(x)
        self.skipped += int(self.saturated.sum())
        if bool(self.saturated.all()):
            return x
        going = (~self.saturated).nonzero()[:, 0].to(x.device)
        after = lean.ffn(x.index_select(0, going))
        alike = cosine(x.index_select(0, going)[:, -1].float(), after[:, -1].float())
        out = x.clone()
        out[going] = after
        self.saturated[going.cpu()] = (alike >= self.skip.threshold).cpu()
        return out
