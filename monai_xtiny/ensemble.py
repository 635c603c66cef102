"""Choosing from many initialisations: the rule `alignment`, its votes and budget. NumPy only.

Narrow networks vary most from one initialisation to the next and cost least, so they get many. The
values of a width are an array of shape (initialisations, images).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai_xtiny.search import ScoreTable

# The share of an image's features that a width must keep, to lose less than 0.005 Dice: fitted on
# the synthetic tasks of docs/benchmarks/selection.md.
THRESHOLD = 0.26
NUM_RESAMPLES = 1000
# Initialisations of a width: at most, and in the first round. The search stops asking when its
# choice is this sure.
MAX_SEEDS = 64
MIN_FIRST_SEEDS, MAX_FIRST_SEEDS, FIRST_FEATURES = 4, 16, 128
STABLE = 0.95
# Alignment needs no gradient: it costs half of what sensitivity does.
ALIGNMENT_COST = 1 / 2
# What a search may cost: one pass of the published rule over that many images, or over twice the
# scored ones where more than half as many were asked for.
BUDGET_IMAGES = 16


def select_alignment(
    widths: Sequence[int], alignments: Sequence[float], *, threshold: float = THRESHOLD
) -> int:
    r"""Choose the smallest width whose features at initialisation still keep enough of the images.

    .. math:: \min \{ c_i : A(c_j) \ge \tau \text{ for all } c_j \ge c_i \}

    where ``A`` is the mean, over initialisations and images, of the share of simple image features
    that the last decoder features explain linearly. A departure from Kimbowa et al. 2026, whose
    rule looks at the sensitivity; what it was compared with is in docs/benchmarks/selection.md.

    Args:
        widths: width caps that were aligned, descending.
        alignments: mean alignment at each.
        threshold: ``tau``.

    Returns:
        The chosen width: the widest of them if even that is below the threshold.

    Raises:
        ValueError: the lengths differ, there are no widths, or a value is not finite.

    >>> select_alignment([32, 16, 8, 4, 2, 1], [0.5, 0.4, 0.3, 0.2, 0.1, 0.05], threshold=0.15)
    4
    """
    values = np.asarray(alignments, dtype=np.float64)
    if not len(widths) or values.shape != (len(widths),) or not np.isfinite(values).all():
        raise ValueError(
            f"{len(widths)} widths and alignments {values.tolist()}: give one finite value each"
        )
    return int(widths[_positions(values[None], threshold)[0]])


def alignment_values(table: ScoreTable) -> dict[int, np.ndarray]:
    """Alignment of each width that has it, widest first: arrays (initialisations, images).

    Raises:
        ValueError: the table has none.
    """
    values = {
        rung.max_features: np.asarray(rung.alignment) for rung in table.ladder if rung.alignment
    }
    if not values:
        raise ValueError(
            "the table of scores has no alignment: score again with --method alignment"
        )
    return values


def bootstrap_votes(
    values: Mapping[int, np.ndarray], *, threshold: float = THRESHOLD, seed: int = 0
) -> dict[int, float]:
    """Share of bootstrap resamples that choose each width; those without a vote are left out.

    Initialisations are resampled for each width apart, images for all widths together: a network
    is drawn for its width alone, an image is seen by all. Few of either would seem surer than they
    are: their means are moved apart until the resamples vary as the mean of as many new ones does.
    A resample in which even the widest width is below the threshold votes for none.

    Args:
        values: of each width, widest first, (initialisations, images).
        threshold: of :func:`select_alignment`.
        seed: of the resampling; the global generator is left as it was.

    Returns:
        Shares by width, widest first; they sum to 1 where every resample has voted.

    Raises:
        ValueError: there are no widths, or the widths differ in their number of images.

    >>> bootstrap_votes({2: np.ones((3, 2)), 1: np.zeros((3, 2))})
    {2: 1.0}
    """
    if len({array.shape[1] for array in values.values()}) != 1:
        shapes = {width: array.shape for width, array in values.items()}
        raise ValueError(f"values of shapes {shapes}: give every width the same images")
    rng = np.random.default_rng(seed)
    num_images = next(iter(values.values())).shape[1]
    images = rng.multinomial(num_images, [1 / num_images] * num_images, NUM_RESAMPLES)
    columns = []
    for array in values.values():
        count = len(array)
        seeds = rng.multinomial(count, [1 / count] * count, NUM_RESAMPLES)
        columns.append(np.einsum("br,ri,bi->b", seeds, _moved_apart(array), images))
        columns[-1] /= count * num_images
    curves = np.stack(columns, axis=1)
    curves = curves[curves[:, 0] >= threshold]
    chosen = np.asarray(list(values))[_positions(curves, threshold)]
    found, counts = np.unique(chosen, return_counts=True)
    return {
        int(width): float(count / NUM_RESAMPLES)
        for width, count in sorted(zip(found, counts, strict=True), reverse=True)
    }


def first_seeds(width: int) -> int:
    """Initialisations of a width in the first round: few for wide ones, many for narrow ones.

    >>> [first_seeds(width) for width in (40, 32, 16, 8, 1)]
    [4, 4, 8, 16, 16]
    """
    return min(MAX_FIRST_SEEDS, max(MIN_FIRST_SEEDS, FIRST_FEATURES // width))


def refinement(
    method: str,
    *,
    num_seeds: int | None = None,
    max_seconds: float | None = None,
    unit_cost: Callable[[int], float],
    threshold: float = THRESHOLD,
) -> Callable[[ScoreTable], Mapping[int, int]] | None:
    """What :func:`monai_xtiny.search.run_search` asks after each round: who needs more seeds.

    The aligned widths begin with :func:`first_seeds` initialisations. While the choice is less than
    ``STABLE`` sure, those of the width that promises most are doubled: of the widths that have
    votes, and the next narrower ones, the one whose mean loses most variance for its cost. It ends
    at ``MAX_SEEDS``, or where the search would cost more than a pass of the published rule over
    ``BUDGET_IMAGES`` images (over twice the scored ones where that is more), or after
    ``max_seconds``. Without a limit in seconds the answer
    depends on the scores alone, so that a search repeats bit for bit.

    Args:
        method: name of the rule; ``paper`` asks for nothing.
        num_seeds: given, every width has had them already, and nothing more is asked for.
        max_seconds: wall time after which nothing more is asked for.
        unit_cost: of one initialisation of a width on one image, in any unit.
        threshold: of :func:`select_alignment`.
    """
    if method == "paper" or num_seeds is not None:
        return None

    def refine(table: ScoreTable) -> Mapping[int, int]:
        values = alignment_values(table)
        counts = {width: len(array) for width, array in values.items()}
        if max_seconds is not None and table.seconds["total"] >= max_seconds:
            return {}
        num_passes = max(BUDGET_IMAGES, 2 * len(table.images))
        budget = num_passes * sum(unit_cost(width) for width in table.widths)
        if max(counts.values()) == 1:
            return _first_round(table, list(counts), unit_cost, budget)
        votes = bootstrap_votes(values, threshold=threshold)
        if max([*votes.values(), 1 - sum(votes.values())]) >= STABLE:
            return {}
        spent = _cost(table, counts, unit_cost)
        gains = {}
        for width in _contested(values, votes):
            double = min(2 * counts[width], MAX_SEEDS)
            extra = (double - counts[width]) * unit_cost(width) * len(table.images) * ALIGNMENT_COST
            if extra and spent + extra <= budget:
                variance = values[width].mean(axis=1).var(ddof=1)
                gains[width] = variance * (1 / counts[width] - 1 / double) / extra
        if not gains:
            return {}
        width = max(gains, key=lambda item: gains[item])
        return {**counts, width: min(2 * counts[width], MAX_SEEDS)}

    return refine


def _first_round(
    table: ScoreTable, widths: Sequence[int], unit_cost: Callable[[int], float], budget: float
) -> dict[int, int]:
    """First initialisations of the aligned widths, halved until the budget allows them."""
    counts = {width: first_seeds(width) for width in widths}
    while _cost(table, counts, unit_cost) > budget and max(counts.values()) > 2:
        counts = {width: max(2, count // 2) for width, count in counts.items()}
    return counts


def _cost(table: ScoreTable, counts: Mapping[int, int], unit_cost: Callable[[int], float]) -> float:
    """Cost of the table with ``counts`` initialisations aligned."""
    return len(table.images) * sum(
        unit_cost(rung.max_features)
        * (len(table.seeds) + ALIGNMENT_COST * counts.get(rung.max_features, 0))
        for rung in table.ladder
    )


def _contested(values: Mapping[int, np.ndarray], votes: Mapping[int, float]) -> list[int]:
    """Widths with votes, and the next narrower one of each: they decide between them.

    The widest one where some resamples have no vote: it is below the threshold there.
    """
    widths = list(values)
    beside = {widths.index(width) + step for width in votes for step in (0, 1)}
    if sum(votes.values()) < 1 - 0.5 / NUM_RESAMPLES:
        beside.add(0)
    return [width for index, width in enumerate(widths) if index in beside]


def _moved_apart(array: np.ndarray) -> np.ndarray:
    """Means of the rows and of the columns moved apart, so that a bootstrap of n varies by n - 1.

    A single row or column stays as it is.
    """
    centre = array.mean()
    for axis in (0, 1):
        count = array.shape[axis]
        means = array.mean(axis=1 - axis, keepdims=True)
        array = array + (np.sqrt(count / max(count - 1, 1)) - 1) * (means - centre)
    return array


def _positions(curves: np.ndarray, threshold: float) -> np.ndarray:
    """Index of the chosen width of each curve (curves, widths), widest first."""
    passed = np.logical_and.accumulate(curves >= threshold, axis=1).sum(axis=1)
    return np.maximum(passed - 1, 0)
