"""The rule `alignment`: the smallest width that keeps enough of the images, and its votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.bootstrap import draw_counts, inflate_deviations
from monai_xtiny.selection.budget import MIN_FIRST_SEEDS, first_round, next_round
from monai_xtiny.selection.rule import Rule, Selection, low_confidence

# The share of an image's features that a width must keep, to lose less than 0.005 Dice: fitted on
# the synthetic tasks of docs/benchmarks/selection.md.
THRESHOLD = 0.26
NUM_RESAMPLES = 1000
# The search stops asking for initializations when its choice is this sure.
STABLE = 0.95
# Images that widths above the aligned ones are scored on: their sensitivity is only drawn, and half
# of the time of a search on 8. Between two of these widths it differs by 0.2 to 0.3 (standard
# deviation of the logarithm) from one initialization to the next, and by 0.1 from image to image.
NUM_WIDE_IMAGES = 1


def select_alignment(
    widths: Sequence[int], alignments: Sequence[float], *, threshold: float = THRESHOLD
) -> int:
    r"""Choose the smallest width whose features at initialization still keep enough of the images.

    .. math:: \min \{ c_i : A(c_j) \ge \tau \text{ for all } c_j \ge c_i \}

    where ``A`` is the mean, over initializations and images, of the share of simple image features
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
    """Alignment of each width that has it, widest first: arrays (initializations, images).

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

    Initializations are resampled for each width separately, images for all widths together: a
    network is drawn for its width alone, an image is seen by all. The bootstrap underestimates the
    variance between the means of either by (n - 1) / n, so these means are first inflated
    (:func:`monai_xtiny.selection.bootstrap.inflate_deviations`). A resample in which even the
    widest width is below the threshold votes for none.

    Args:
        values: of each width, widest first, (initializations, images).
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
    images = draw_counts(rng, num_images, NUM_RESAMPLES)
    columns = []
    for array in values.values():
        count = len(array)
        seeds = draw_counts(rng, count, NUM_RESAMPLES)
        # Means of the initializations, then those of the images.
        spread = inflate_deviations(inflate_deviations(array, 0, over=1), 1, over=0)
        columns.append(np.einsum("br,ri,bi->b", seeds, spread, images))
        columns[-1] /= count * num_images
    curves = np.stack(columns, axis=1)
    curves = curves[curves[:, 0] >= threshold]
    chosen = np.asarray(list(values))[_positions(curves, threshold)]
    found, counts = np.unique(chosen, return_counts=True)
    return {
        int(width): float(count / NUM_RESAMPLES)
        for width, count in sorted(zip(found, counts, strict=True), reverse=True)
    }


def refine_alignment(
    table: ScoreTable, unit_cost: Callable[[int], float], *, threshold: float = THRESHOLD
) -> Mapping[int, int]:
    """How many initializations of each width should be aligned, from the scores so far.

    The aligned widths begin with :func:`monai_xtiny.selection.budget.first_seeds`. While the choice
    is less than ``STABLE`` sure, those of the width that promises most are doubled
    (:func:`monai_xtiny.selection.budget.next_round`), as long as the budget allows.

    Args:
        table: of the scores so far.
        unit_cost: of one initialization of a width on one image, in any unit.
        threshold: of :func:`select_alignment`.

    Returns:
        Counts by width; none where no more are needed.

    Raises:
        ValueError: the table has no alignment.
    """
    values = alignment_values(table)
    if max(len(array) for array in values.values()) == 1:
        return first_round(table, unit_cost)
    votes = bootstrap_votes(values, threshold=threshold)
    if max([*votes.values(), 1 - sum(votes.values())]) >= STABLE:
        return {}
    return next_round(table, values, votes, unit_cost)


def _positions(curves: np.ndarray, threshold: float) -> np.ndarray:
    """Index of the chosen width of each curve (curves, widths), widest first."""
    passed = np.logical_and.accumulate(curves >= threshold, axis=1).sum(axis=1)
    return np.maximum(passed - 1, 0)


def _choose_alignment(table: ScoreTable) -> Selection:
    """The choice by the means over all initializations and images, and the bootstrap's votes."""
    values = alignment_values(table)
    chosen = select_alignment(list(values), [array.mean() for array in values.values()])
    votes = bootstrap_votes(values)
    is_sure = min(len(array) for array in values.values()) > 1
    return Selection(
        method=ALIGNMENT.name,
        max_features=chosen,
        votes=votes,
        confidence=votes.get(chosen, 0.0) if is_sure else None,
        table=table,
        threshold=THRESHOLD,
    )


def _doubt_alignment(selection: Selection) -> str:
    """What is doubtful about a choice; empty where nothing is."""
    if selection.confidence is None:
        return "One initialization of a width states no confidence"
    low = low_confidence(selection)
    if low and sum(selection.votes.values()) < 0.5:
        return "Not even the widest of the compared widths keeps enough of these images"
    fewest = min(
        (len(rung.alignment) for rung in selection.table.ladder if rung.alignment), default=0
    )
    if not low and fewest < MIN_FIRST_SEEDS:
        return f"With {fewest} initializations of a width the confidence is rough"
    return low


def _describe_alignment(table: ScoreTable) -> str:
    """The model card's paragraph on the choice."""
    return (
        "The width was chosen from unlabeled images and without training, after XTinyU-Net (see "
        "References): the smallest whose features at initialization still keep enough of the "
        f"images (rule `{ALIGNMENT.name}`), over up to {len(table.alignment_seeds)} "
        "initializations of narrow networks. The Jacobian sensitivity of each width is listed "
        "beside it."
    )


def _voters_alignment(table: ScoreTable) -> str:
    """Whose votes the confidence counts."""
    return "resamples of initializations and images"


ALIGNMENT = Rule(
    "alignment",
    choose=_choose_alignment,
    describe=_describe_alignment,
    voters=_voters_alignment,
    num_images=8,
    needs_alignment=True,
    refine=refine_alignment,
    doubt=_doubt_alignment,
    num_wide_images=NUM_WIDE_IMAGES,
)
