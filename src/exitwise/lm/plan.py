"""What a method asks of the decoding loop beyond a rule for leaving: drafts, routes, parts of layers that are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from .backbone import Backbone
    from .drafting import Drafter, Offers

Route = Callable[[int, int], Sequence[int]]  # (step, layers of the model) -> numbers of the layers that run, from 0, rising


@dataclass(frozen=True)
class Draft:
    """Draft, and verify by the layers that the draft did not run.

    make: (backbone, trained parts, rows) -> a drafter at a shallow depth; None: only what is offered is drafted. most: tokens drafted a
    round (gamma). sure: drafting stops once the last drafted token's probability is below (eta); that token is verified all the same.
    offers: (trained parts, prompts of the rows) -> what offers drafts that cost nothing (`drafting.Offers`); it goes first. needs: names
    of trained parts without which it cannot draft.
    """

    make: Callable[[Backbone, Mapping[str, nn.Module], int], Drafter] | None
    most: int = 6
    sure: float = 0.0
    offers: Callable[[Mapping[str, nn.Module], Sequence[Sequence[int]]], Offers] | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SkipFFN:
    """Leave feed-forward nets out once they change the state little (FFN-SkipLLM): attention always runs, so no keys are missing.

    threshold: on the cosine of a state before and after the net, with the residual. cold: layers at the bottom and at the top that are
    never left out. warm: tokens generated at first with everything.
    """

    threshold: float
    cold: tuple[int, int]
    warm: int


class Watch(Protocol):
    """Chooses the threshold of a rule that is asked at one depth from what the running model itself shows.

    begin: a run starts; the threshold in force. open: whether it still learns. see: of tokens that the exit judged and that the last layer
    has read since, how sure the exit was, and whether both found the same token the likeliest.
    """

    @property
    def open(self) -> bool: ...

    def begin(self) -> float: ...

    def see(self, sure: Sequence[float], agree: Sequence[bool]) -> None: ...


@dataclass(frozen=True)
class Decoding:
    """Only the loop can do these; at most one of them. watch: holds state; an engine keeps one for all its runs."""

    draft: Draft | None = None
    route: Route | None = None
    skip: SkipFFN | None = None
    watch: Watch | None = None
