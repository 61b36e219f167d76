"""Learning from a reward: the model writes, what it wrote is judged, and its layers learn from the judgement (self-critical training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from exitwise.errors import KnobError

from .losses import IGNORED, Weights, leave_one_out, self_critical

Search = Literal["sample", "beam"]
UNREPEATED = 3  # a beam search writes no three tokens twice, as OFA's does


@torch.no_grad()
def write(
    model: Any, inputs: dict[str, Any], samples: int = 1, longest: int = 16, search: Search = "sample", temperature: float = 1.0
) -> Tensor:
    """Texts for each row of `inputs`, as ids without the start token, (rows * samples, length), a row's texts following each other.

    "sample" draws them at this temperature, "beam" takes the candidates of a beam search; one sample is the greedy text. The model writes
    in eval mode, and is then in the mode that it was in. Raises KnobError for another search.
    """
    how: dict[str, Any] = {"num_beams": 1, "do_sample": False}
    if samples > 1 and search == "sample":
        how = {"num_beams": 1, "do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": samples}
    elif samples > 1 and search == "beam":
        how = {"num_beams": samples, "do_sample": False, "num_return_sequences": samples, "no_repeat_ngram_size": UNREPEATED}
    elif search not in ("sample", "beam"):
        raise KnobError(f"search {search!r} is unknown. Allowed: sample, beam.")
    was = model.training
    model.eval()
    try:
        ids: Tensor = model.generate(**inputs, max_new_tokens=longest, **how)[:, 1:]
        return ids
    finally:
        model.train(was)


def taught(ids: Tensor, start: int, end: int, pad: int) -> tuple[Tensor, Tensor]:
    """What the decoder reads and says for these texts, each (rows, length of the longest text): ids up to the first end token.

    ids: (rows, tokens), as `write` gives them. A text without an end is taught whole, and no end is asked of it.

    >>> taught(torch.tensor([[7, 2, 1], [8, 9, 5]]), 0, 2, 1)
    (tensor([[0, 7, 1],
            [0, 8, 9]]), tensor([[   7,    2, -100],
            [   8,    9,    5]]))
    """
    ends = ids == end
    counted = (ends.cumsum(1) - ends.long()) == 0
    length = max(1, int(counted.any(0).sum()))
    ids, counted = ids[:, :length], counted[:, :length]
    given = torch.cat([ids.new_full((len(ids), 1), start), ids[:, :-1]], 1)
    return given.masked_fill(~counted, pad), ids.masked_fill(~counted, IGNORED)


def rewarded(
    hidden_states: Sequence[Tensor],
    readout: Callable[[Tensor], Tensor],
    labels: Tensor,
    worth: Tensor,
    *,
    weights: Weights | Sequence[float] = "last",
    reduction: Literal["sum", "mean"] = "mean",
    lean: bool = False,
) -> Tensor:
    """The self-critical loss of written texts, a scalar: each is better or worse than the mean of the others of its image.

    hidden_states: the decoder's layers over these texts. labels: of `taught`, (groups * samples, tokens). worth: (groups, samples), such as
    CIDEr-D on its usual scale of 0 to 10. weights: of the layers; "last" is the usual loss, others teach every exit by the reward.
    """
    advantage = leave_one_out(worth).flatten()
    return self_critical(hidden_states, readout, labels, advantage, weights=weights, reduction=reduction, lean=lean)
