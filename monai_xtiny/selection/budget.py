"""Which width gets more initializations, and what they may cost: rounds of a search. NumPy only.

Before the first round every width has one initialization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from monai_xtiny.scores.table import ScoreTable

# Initializations of a width: at most, and in the first round.
MAX_SEEDS = 64
MIN_FIRST_SEEDS, MAX_FIRST_SEEDS, FIRST_FEATURES = 4, 16, 128
# Alignment needs no gradient: it costs half of what sensitivity does.
ALIGNMENT_COST = 1 / 2
# What a search may cost: one pass of the published rule over that many images, or over twice the
# scored ones where more than half as many were asked for.
BUDGET_IMAGES = 16


def first_seeds(width: int, *, share: float = 1) -> int:
    """Initializations of a width in the first round: few for wide ones, many for narrow ones.

    Args:
        width: width cap.
        share: of the usual numbers, for a rule that states no confidence by them.

    >>> [first_seeds(width) for width in (40, 32, 16, 8, 1)]
    [4, 4, 8, 16, 16]
    >>> [first_seeds(width, share=0.25) for width in (40, 32, 16, 8, 4, 1)]
    [1, 1, 2, 4, 4, 4]
    """
    fewest, most, features = (
        int(share * number) for number in (MIN_FIRST_SEEDS, MAX_FIRST_SEEDS, FIRST_FEATURES)
    )
    return min(most, max(fewest, features // width))


def first_round(
    table: ScoreTable, unit_cost: Callable[[int], float], *, share: float = 1
) -> dict[int, int]:
    """Initializations of the aligned widths, halved until the budget allows them.

    Args:
        table: of the scores so far.
        unit_cost: of one initialization of a width on one image, in any unit.
        share: of the usual numbers.
    """
    counts = {rung.max_features: first_seeds(rung.max_features, share=share)
              for rung in table.ladder if rung.alignment}  # fmt: skip
    budget = _budget(table, unit_cost)
    while _cost(table, counts, unit_cost) > budget and max(counts.values()) > 2:
        counts = {width: min(count, max(2, count // 2)) for width, count in counts.items()}
    return counts


def next_round(
    table: ScoreTable,
    values: Mapping[int, np.ndarray],
    votes: Mapping[int, float],
    unit_cost: Callable[[int], float],
) -> dict[int, int]:
    """Initializations of the aligned widths, doubled for the one that promises most.

    Of the widths that have votes, and the next narrower ones, it is the one whose mean loses most
    variance for its cost.

    Args:
        table: of the scores so far.
        values: alignment of each width, widest first, (initializations, images), at least 2 rows.
        votes: share of each width that has any.
        unit_cost: of one initialization of a width on one image, in any unit.

    Returns:
        Counts by width; none where all have ``MAX_SEEDS`` or the budget is spent.
    """
    counts = {width: len(array) for width, array in values.items()}
    budget = _budget(table, unit_cost)
    spent = _cost(table, counts, unit_cost)
    gains = {}
    for width in _contested(list(values), votes):
        double = min(2 * counts[width], MAX_SEEDS)
        extra = (double - counts[width]) * unit_cost(width) * len(table.images) * ALIGNMENT_COST
        if extra and spent + extra <= budget:
            variance = values[width].mean(axis=1).var(ddof=1)
            gains[width] = variance * (1 / counts[width] - 1 / double) / extra
    if not gains:
        return {}
    width = max(gains, key=lambda item: gains[item])
    return {**counts, width: min(2 * counts[width], MAX_SEEDS)}


def _budget(table: ScoreTable, unit_cost: Callable[[int], float]) -> float:
    """What the search may cost in all."""
    num_passes = max(BUDGET_IMAGES, 2 * len(table.images))
    return num_passes * sum(unit_cost(width) for width in table.widths)


def _cost(table: ScoreTable, counts: Mapping[int, int], unit_cost: Callable[[int], float]) -> float:
    """Cost of the table with ``counts`` initializations aligned.

    As if every width were scored on all images: what the choice rests on does not follow how many
    wide ones were scored on for the report.
    """
    return len(table.images) * sum(
        unit_cost(rung.max_features)
        * (len(table.seeds) + ALIGNMENT_COST * counts.get(rung.max_features, 0))
        for rung in table.ladder
    )


def _contested(widths: list[int], votes: Mapping[int, float]) -> list[int]:
    """Widths with votes, and the next narrower one of each: they decide between them.

    The widest one where some resamples have no vote: it is below the threshold there.
    """
    beside = {widths.index(width) + step for width in votes for step in (0, 1)}
    if sum(votes.values()) < 1 - 1e-9:  # shares are rounded
        beside.add(0)
    return [width for index, width in enumerate(widths) if index in beside]
