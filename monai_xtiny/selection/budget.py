"""How many initialisations of which width the rule `alignment` asks for. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from monai_xtiny.selection.alignment import (
    NUM_RESAMPLES,
    THRESHOLD,
    alignment_values,
    bootstrap_votes,
)

if TYPE_CHECKING:
    from monai_xtiny.scores.table import ScoreTable


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
    """What :func:`monai_xtiny.run_search` asks after each round: who needs more seeds.

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
