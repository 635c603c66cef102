"""An order of cases, the most uncertain first, in which no two that are alike come soon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

# Cases of which all pairs are measured to know a usual distance.
_SAMPLE = 1000
# Of a feature's largest value: what float32 makes of features that are equal.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Ranked:
    """A case in its place.

    Args:
        index: of the case, as it was given.
        score: uncertainty times distance; it does not rise from one place to the next.
    """

    index: int
    score: float


def rank_diverse(
    uncertainty: NDArray[np.float64], features: NDArray[np.float64]
) -> tuple[Ranked, ...]:
    """Greedy weighted k-center: next comes the case with the largest weighted distance.

    With ``S`` the cases that come before, the next one is ::

        argmax_i  u_i min_{j in S} d_ij,    d_ij = min(|f_i - f_j| / D, 1)

    and the first is the most uncertain. This is the heuristic of Dyer and Frieze (1985, Operations
    Research Letters 3, 285-288) for weighted k-center, whose unweighted form (Gonzalez 1985) is the
    core-set of Sener and Savarese (2018, arXiv:1708.00489). A departure: a distance beyond ``D``,
    the median of those that are not 0, counts as ``D``, so that nothing is preferred for being
    unlike all else.

    Args:
        uncertainty: of each case, not negative, (N,).
        features: of each case, (N, F); each feature is brought to a standard deviation of 1, and
            one that is the same in all cases, but for float32's rounding, counts nothing.

    Returns:
        All cases; of equals the one that was given first.

    Raises:
        ValueError: a number is not finite, or an uncertainty negative.

    >>> ranked = rank_diverse(np.array([0.5, 0.9, 0.8]), np.array([[3.0], [0.0], [0.0]]))
    >>> [(item.index, item.score) for item in ranked]
    [(1, 0.9), (0, 0.5), (2, 0.0)]
    """
    weights = np.asarray(uncertainty, np.float64)
    if not (np.isfinite(weights).all() and np.isfinite(features).all() and (weights >= 0).all()):
        raise ValueError("uncertainty and features must be finite, and uncertainty not negative")
    points = np.asarray(features, np.float64)
    spread = points.std(axis=0)
    varies = spread > _ROUNDING * np.abs(points).max(axis=0, initial=0)
    points = np.where(varies, (points - points.mean(axis=0)) / np.where(varies, spread, 1), 0)
    usual = _usual_distance(points)
    nearest = np.ones(len(points))
    is_left = np.ones(len(points), bool)
    ranked = []
    for _ in points:
        scores = np.where(is_left, weights * nearest, -1)
        # Among what is worth nothing, the more uncertain.
        first = int(np.lexsort((-weights, -scores))[0])
        ranked.append(Ranked(first, float(scores[first])))
        is_left[first] = False
        distances = np.linalg.norm(points - points[first], axis=1)
        nearest = np.minimum(nearest, distances / usual if usual > 0 else 0)
    return tuple(ranked)


def _usual_distance(points: NDArray[np.float64]) -> float:
    """Median distance of the pairs that are apart, of a thousand points if there are more."""
    some = points[:: -(-len(points) // _SAMPLE)] if len(points) else points
    distances = pdist(some) if len(some) > 1 else np.zeros(0)
    apart = distances[distances > 0]
    return float(np.median(apart)) if len(apart) else 0.0
