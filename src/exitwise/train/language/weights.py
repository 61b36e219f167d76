"""How much the loss of each exit weighs: pure functions from a step to {depth: weight}, depths 1..n, each set summing to 1."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from exitwise.errors import DepthError, KnobError

Weights = dict[int, float]


def normalised(weights: Mapping[int, float]) -> Weights:
    """The same weights, summing to 1; those of 0 are left out. Raises KnobError where none is above 0."""
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0:
        raise KnobError(f"weights {dict(weights)} do not sum to something above 0, or one is below 0.")
    return {depth: weight / total for depth, weight in weights.items() if weight}


def uniform(depths: Iterable[int], layers: int) -> Weights:
    """Equal weights for nested sub-models of these depths (Kavehzadeh et al. 2024, Sorted LLaMA, arXiv:2309.08968).

    >>> uniform((2, 4), 4)
    {2: 0.5, 4: 0.5}
    """
    return normalised(dict.fromkeys(checked(depths, layers), 1.0))


def rising(layers: int) -> Weights:
    """i / sum i for depth i (Schuster et al. 2022, arXiv:2207.07061).

    >>> rising(4)
    {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    """
    return normalised({depth: float(depth) for depth in range(1, layers + 1)})


def two_exits(shallow: int, layers: int) -> Weights:
    """(E CE_E + L CE_L) / (E + L) (Bae et al. 2023, arXiv:2310.05424).

    >>> two_exits(2, 6)
    {2: 0.25, 6: 0.75}
    """
    checked((shallow,), layers)
    return normalised({shallow: float(shallow), layers: float(layers)})


def scaled(layers: int, scale: float, active: Collection[int]) -> Weights:
    """LayerSkip's e(l) C(t, l), normalised over the depths that are active at this step; the last always is (Elhoushi et al. 2024,
    arXiv:2404.16710). e(l) = scale * (0 + .. + l) for layers l = 0..L-2, and (L-1) + scale * (0 + .. + L-2) for the last.

    >>> {depth: round(weight, 4) for depth, weight in scaled(4, 0.5, (1, 2, 3)).items()}
    {2: 0.0769, 3: 0.2308, 4: 0.6923}
    """
    found = {depth: scale * depth * (depth - 1) / 2 for depth in sorted(active) if depth < layers}
    return normalised({**found, layers: layers - 1 + scale * (layers - 1) * (layers - 2) / 2})


def rotating(step: int, layers: int, every: int) -> set[int]:
    """The depths whose layer l = depth - 1 has l = step modulo `every`, and the last: C_rot of LayerSkip.

    >>> sorted(rotating(1, 6, 3)), sorted(rotating(2, 6, 3))
    ([2, 5, 6], [3, 6])
    """
    return {depth for depth in range(1, layers + 1) if (depth - 1) % every == step % every} | {layers}


def gradual(step: int, layers: int, steps: int) -> set[int]:
    """From the last depth downwards, one more each steps / (2 layers) steps: all from the half of the training on. C_grad of LayerSkip.

    >>> [len(gradual(step, 4, 80)) for step in (0, 9, 10, 20, 30, 79)]
    [1, 1, 2, 3, 4, 4]
    """
    enabled = min(layers, 1 + step * 2 * layers // steps)
    return set(range(layers - enabled + 1, layers + 1))


def warmed(last: int, early: Mapping[int, float], step: int, warmup: int) -> dict[int, float]:
    """1 for the last exit and these weights for the others, growing to that over `warmup` steps; not normalised (Chen et al. 2024, EE-LLM,
    arXiv:2312.04916).

    >>> warmed(6, {2: 0.5}, 1, 4), warmed(6, {2: 0.5}, 9, 4)
    ({2: 0.25, 6: 1.0}, {2: 0.5, 6: 1.0})
    """
    share = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return {**{depth: share * weight for depth, weight in early.items()}, last: 1.0}


def checked(depths: Iterable[int], layers: int) -> list[int]:
    """Rising depths without doubles. Raises DepthError outside 1..layers, or for none at all."""
    found = sorted(set(depths))
    if not found or found[0] < 1 or found[-1] > layers:
        raise DepthError(f"depths {found} are not within 1..{layers}, the layers of this model. Give one or more of those.")
    return found
