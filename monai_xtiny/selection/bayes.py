"""The rule `bayes`: the width that is expected to cost least, by what trained tasks needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.alignment import THRESHOLD, alignment_values
from monai_xtiny.selection.budget import first_round
from monai_xtiny.selection.posterior import (
    ALIGNMENT_BIAS,
    ALIGNMENT_SD,
    Belief,
    crossing,
    least_loss,
    listed_shares,
    prior_belief,
)
from monai_xtiny.selection.rule import Rule, Selection

# The pick, or a neighbor of it, is right with less than this: then the user is told. For tasks that
# are left out 0.85 is stated on average, and 0.75 are right.
LIKELY = 0.7
# Of the initializations that `alignment` starts with. With a quarter of them the crossing has a
# deviation of 0.2 steps from search to search, where it is off by 1.4, and the regret is the same
# (docs/benchmarks/race.md).
SHARE_OF_SEEDS = 0.25


def unlabeled_belief(table: ScoreTable) -> Belief:
    """What is known of the width without labels: by the classes' number, and by the images.

    Args:
        table: of scores; without alignment the number of classes alone speaks.
    """
    belief = prior_belief(table.plan.out_channels)
    if not any(rung.alignment for rung in table.ladder):
        return belief
    means = {width: float(np.mean(array)) for width, array in alignment_values(table).items()}
    return belief.updated(crossing(means, THRESHOLD) - ALIGNMENT_BIAS, ALIGNMENT_SD)


def refine_bayes(table: ScoreTable, unit_cost: Callable[[int], float]) -> Mapping[int, int]:
    """Initializations of each width for the second round, which is the last.

    More of them would move the crossing by less than a tenth of what it is off by.

    Args:
        table: of the scores so far.
        unit_cost: of one initialization of a width on one image, in any unit.
    """
    is_first = max(len(array) for array in alignment_values(table).values()) == 1
    return first_round(table, unit_cost, share=SHARE_OF_SEEDS) if is_first else {}


def _choose_bayes(table: ScoreTable) -> Selection:
    """The width of the least expected loss, and its probability to be the one that is needed."""
    alignment_values(table)  # refused without
    shares = unlabeled_belief(table).shares(table.widths)
    chosen = least_loss(shares)
    return Selection(
        method=BAYES.name,
        max_features=chosen,
        votes=listed_shares(shares),
        confidence=round(shares[chosen], 3),
        table=table,
        threshold=THRESHOLD,
    )


def _choose_among_bayes(selection: Selection, among: Collection[int]) -> int:
    """The width of the least expected loss among some."""
    table = selection.table
    return least_loss(unlabeled_belief(table).shares(table.widths), among=among)


def _doubt_bayes(selection: Selection) -> str:
    """What is doubtful about a choice; empty where its neighbors at least are likely."""
    widths = selection.table.widths
    place = widths.index(selection.max_features)
    near = sum(selection.votes.get(width, 0.0) for width in widths[max(place - 1, 0) : place + 2])
    if near >= LIKELY:
        return ""
    return f"With a probability of {1 - near:.0%} the right width is not even a neighbor"


def _describe_bayes(table: ScoreTable) -> str:
    """The model card's paragraph on the choice."""
    return (
        "The width was chosen from unlabeled images and without training, after XTinyU-Net (see "
        "References): the one that is expected to cost least (rule `bayes`), in Dice lost and in "
        "parameters, by the widths that trained tasks needed, by the number of classes, and by "
        "what the features of each width at initialization keep of the images (up to "
        f"{len(table.alignment_seeds)} initializations). The Jacobian sensitivity of each width is "
        "listed beside it."
    )


def _voters_bayes(table: ScoreTable) -> str:
    """Whose votes the confidence counts."""
    return "trained tasks like this one, by these probabilities,"


BAYES = Rule(
    "bayes",
    choose=_choose_bayes,
    describe=_describe_bayes,
    voters=_voters_bayes,
    num_images=8,
    needs_alignment=True,
    refine=refine_bayes,
    doubt=_doubt_bayes,
    num_wide_images=1,
    among=_choose_among_bayes,
)
