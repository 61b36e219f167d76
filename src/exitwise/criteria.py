"""When a row leaves: how sure a state is, how the threshold moves with the step, and the rules made of both.

Every sureness is in [0, 1], or in [-1, 1] for a cosine; higher is surer. Rules deal in numbers on the host, one for each row, so that
asking costs one synchronisation; they are float32, and so are the thresholds they are compared with. A rule is a frozen value; it holds
no state of a run.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import DepthError, KnobError
from .few import kernel

SCOPES = ("token_mean", "flat", "token_min", "last")
SCHEDULES = ("static", "paper", "released")


def similarity(before: Tensor, after: Tensor, scope: str = "token_mean", mask: Tensor | None = None) -> Tensor:
    """Cosine of consecutive hidden states, (rows,), computed in float32. Tang et al. 2023, arXiv:2211.11152, section 3.3.

    before, after: (rows, tokens, width). mask: (rows, tokens), true where a token counts; pads never change the outcome.
    scope: 'flat' takes all tokens of a row as one vector (the released code, without its mixing of rows), 'token_mean' the mean of the
    tokens' cosines, 'token_min' the least, 'last' the last token that counts.
    """
    before, after = before.float(), after.float()
    if before.shape[1] == 1:
        return cosine(before, after)[:, 0]
    if scope == "flat":
        if mask is not None:
            before, after = before * mask[..., None], after * mask[..., None]
        return cosine(before.flatten(1), after.flatten(1))
    if scope == "last":
        if mask is None:
            return cosine(before[:, -1], after[:, -1])
        last = last_real(mask)
        rows = torch.arange(len(last), device=last.device)
        return cosine(before[rows, last], after[rows, last])
    each = cosine(before, after)
    if mask is None:
        return each.mean(1) if scope == "token_mean" else each.amin(1)
    if scope == "token_mean":
        return (each * mask).sum(1) / mask.sum(1).clamp(min=1)
    return each.masked_fill(~mask.bool(), math.inf).amin(1)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of the last dimension; 0 where a vector is zero. A quarter of the time of PyTorch's own for an image's states (CPU, 900 tokens)."""
    length = torch.linalg.vector_norm(one, dim=-1) * torch.linalg.vector_norm(other, dim=-1)
    return torch.linalg.vecdot(one, other) / length.clamp_min(1e-8)


def similarities(before: Tensor, after: Tensor, scope: str = "token_mean", mask: Tensor | None = None) -> list[float]:
    """`similarity` as numbers on the host.

    An operation that follows a layer finds the caches swept and takes 5 to 25 us on a CPU, whatever its size, and a decoder asks after
    every layer: for one token of each row it is one call of the kernel, where there is one.
    """
    if before.shape[1] == 1 and before.is_cpu and before.dtype == after.dtype == torch.float32 and (ours := kernel()) is not None:
        return ours.cosines(before, after)
    found: list[float] = similarity(before, after, scope, mask).tolist()
    return found


def single(number: float) -> float:
    """The nearest float32: what is measured is one, and a threshold that was taken from it must equal it."""
    return ctypes.c_float(number).value


def last_real(mask: Tensor) -> Tensor:
    """(rows,) place of the last token that counts, from 0; 0 where none does. mask: (rows, tokens)."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask.bool(), place, -1).amax(1).clamp(min=0)


def paper_schedule(threshold: float, step: int, steps: int, beta: float, tau: float) -> float:
    """Theta(t) = clip(beta * theta + (1 - beta) * exp(-tau * t / N), 0, 1): the decay of MuE, after CALM.

    >>> [round(paper_schedule(0.99, t, 2, 0.95, 1.0), 4) for t in (0, 1, 2)]
    [0.9905, 0.9708, 0.9589]
    """
    return min(1.0, max(0.0, beta * threshold + (1 - beta) * math.exp(-tau * step / max(steps, 1))))


def released_schedule(threshold: float, step: int, steps: int, beta: float, tau: float) -> float:
    """The decay in MuE's released code: full depth in the first third, then 0.9 theta + 0.1 exp(-(t + 1) / (N + 1)); beta and tau
    are fixed there.

    >>> [round(released_schedule(0.9, t, 16, 0.95, 1.0), 3) for t in (5, 6)]
    [1.0, 0.876]
    """
    if step < (steps + 1) / 3:
        return 1.0
    return 0.9 * threshold + 0.1 * math.exp(-(step + 1) / (steps + 1))


def static_schedule(threshold: float, step: int, steps: int, beta: float, tau: float) -> float:
    """The threshold itself at every step."""
    return threshold


SCHEDULE: dict[str, Callable[[float, int, int, float, float], float]] = {
    "static": static_schedule,
    "paper": paper_schedule,
    "released": released_schedule,
}


class Step(NamedTuple):
    """Where a walk stands when a rule is asked: the layer just run (1..layers), and for a decoder the step and the most steps
    there can be."""

    layer: int
    layers: int
    step: int = 0
    steps: int = 1
    tokens: int = 1


class Rule(Protocol):
    """Decides after which layer the rows of one stream leave."""

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int] | None:
        """Depth of each row if it is known before the walk (no measurement, no host synchronisation), else None."""
        ...

    def may_leave(self, at: Step) -> bool:
        """Whether any row could leave here; if not, nothing is measured."""
        ...

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        """How sure each row is after the layer."""
        ...

    def leaves(self, sureness: Sequence[float], at: Step, rows: Sequence[int]) -> list[bool]:
        """Whether each of the rows (numbers in the batch) that were measured leaves."""
        ...


@dataclass(frozen=True)
class Saturation:
    """Leave when the cosine of consecutive states is above the threshold (strictly, as in MuE's algorithm 1).

    threshold: at or above 1 never leaves, whatever rounding does. minimum: least depth in layers. schedule: how the threshold
    moves with the
    decoding step. Encoders have a single step.
    """

    threshold: float
    scope: str = "token_mean"
    minimum: int = 1
    schedule: str = "static"
    beta: float = 0.95
    tau: float = 1.0

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold < -1:
            raise KnobError(
                f"A threshold of {self.threshold} is outside the range of a cosine. Allowed: -1 and above; 1 or more means never."
            )
        if self.scope not in SCOPES:
            raise KnobError(f"scope={self.scope!r} is not known. Allowed: {', '.join(SCOPES)}.")
        if self.schedule not in SCHEDULES:
            raise KnobError(f"schedule={self.schedule!r} is not known. Allowed: {', '.join(SCHEDULES)}.")
        if self.minimum < 1:
            raise KnobError(f"minimum={self.minimum} is not a depth. Depths start at 1.")

    def at(self, at: Step) -> float:
        """The threshold in force at this step."""
        return SCHEDULE[self.schedule](self.threshold, at.step, at.steps, self.beta, self.tau)

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int] | None:
        return [layers] * rows if self.threshold >= 1 else None

    def may_leave(self, at: Step) -> bool:
        return self.minimum <= at.layer < at.layers and self.at(at) < 1

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        return similarities(before, after, self.scope, mask)

    def leaves(self, sureness: Sequence[float], at: Step, rows: Sequence[int]) -> list[bool]:
        limit = single(self.at(at))
        return [sure > limit for sure in sureness]


class _Foretold:
    """Rules that know every depth before the walk: nothing is measured on the way."""

    def may_leave(self, at: Step) -> bool:
        return True

    def sureness(self, before: Tensor, after: Tensor, mask: Tensor | None) -> list[float]:
        return similarities(before, after, "token_mean", mask)

    def leaves(self, sureness: Sequence[float], at: Step, rows: Sequence[int]) -> list[bool]:
        raise AssertionError("a foretold rule is never asked")


@dataclass(frozen=True)
class Fixed(_Foretold):
    """Leave at given depths: one int for all, one per row, or `pattern`, one per decoding step (the last one holds from there on)."""

    depth: int | Sequence[int] = 1
    pattern: Sequence[int] | None = None

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int]:
        if self.pattern is not None:
            wanted = [self.pattern[min(step, len(self.pattern) - 1)]] * rows
        elif isinstance(self.depth, int):
            wanted = [self.depth] * rows
        else:
            wanted = [self.depth[row % len(self.depth)] for row in range(rows)]
        for depth in wanted:
            if not 1 <= depth <= layers:
                raise DepthError(
                    f"Depth {depth} is outside this stack, which has {layers} layers. Depths run 1..{layers}; {layers} means no early exit."
                )
        return wanted


@dataclass(frozen=True)
class Drawn(_Foretold):
    """Random exits: each row (and step) draws its depth from `weights` (one per layer, need not sum to 1), from the session's
    seeded generator."""

    weights: tuple[float, ...]

    def depths(self, rows: int, layers: int, step: int, dice: torch.Generator) -> list[int]:
        if len(self.weights) != layers:
            raise DepthError(f"{len(self.weights)} weights were given for a stack of {layers} layers. Give one per layer.")
        return [int(i) + 1 for i in torch.multinomial(torch.tensor(self.weights, dtype=torch.double), rows, True, generator=dice)]
