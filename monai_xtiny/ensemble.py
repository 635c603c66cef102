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
# What a search may cost: one pass of the published rule over that many images.
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
            f"{len(widths)} widths and alignments {list(alignments)}: give one finite value each"
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
    is drawn for its width alone, an image is seen by all.

    Args:
        values: of each width, widest first, (initialisations, images).
        threshold: of :func:`select_alignment`.
        seed: of the resampling; the global generator is left as it was.

    >>> bootstrap_votes({2: np.ones((3, 2)), 1: np.zeros((3, 2))})
    {2: 1.0}
    """
    rng = np.random.default_rng(seed)
    num_images = next(iter(values.values())).shape[1]
    images = rng.multinomial(num_images, [1 / num_images] * num_images, NUM_RESAMPLES)
    columns = []
    for array in values.values():
        count = len(array)
        seeds = rng.multinomial(count, [1 / count] * count, NUM_RESAMPLES)
        columns.append(np.einsum("br,ri,bi->b", seeds, array, images) / (count * num_images))
    chosen = np.asarray(list(values))[_positions(np.stack(columns, axis=1), threshold)]
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
    ``BUDGET_IMAGES`` images, or after ``max_seconds``. Without a limit in seconds the answer
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
        budget = BUDGET_IMAGES * sum(unit_cost(width) for width in table.widths)
        if max(counts.values()) == 1:
            return _first_round(table, list(counts), unit_cost, budget)
        if max_seconds is not None and table.seconds["total"] >= max_seconds:
            return {}
        votes = bootstrap_votes(values, threshold=threshold)
        if max(votes.values()) >= STABLE:
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
    """Widths with votes, and the next narrower one of each: they decide between them."""
    widths = list(values)
    beside = {widths.index(width) + step for width in votes for step in (0, 1)}
    return [width for index, width in enumerate(widths) if index in beside]


def _positions(curves: np.ndarray, threshold: float) -> np.ndarray:
    """Index of the chosen width of each curve (curves, widths), widest first."""
    passed = np.logical_and.accumulate(curves >= threshold, axis=1).sum(axis=1)
    return np.maximum(passed - 1, 0)
