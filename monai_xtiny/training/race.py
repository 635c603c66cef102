"""A race of widths on the same cases: who leads, who runs next, and what it says. NumPy only.

The Dice of a width is an array (seeds, cases, classes), NaN where the label of a case lacks the
class. All widths are measured on the same cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from monai_xtiny.selection.bootstrap import (
    draw_cases,
    draw_counts,
    inflate_cases,
    inflate_deviations,
)
from monai_xtiny.selection.posterior import Belief

# Dice that a narrower width may lose after a whole training: the margin of non-inferiority.
TOLERANCE = 0.01
# Brief trainings favor the wider of two widths: their difference shrinks with the root of the
# updates, of which this many were whole trainings; below the first number it is taken to grow no
# more. Of docs/benchmarks/race.md.
FEWEST_UPDATES, WHOLE_UPDATES = 60, 480
# What the smallest width of a race within the tolerance is off by, against that of whole trainings,
# in steps of the ladder, besides what its cases and trainings show: of a race that time stopped
# before that width and its neighbors had two trainings each, and of one that had them. Of
# docs/benchmarks/race.md.
STOPPED_SD, RACE_SD = 0.9, 0.4
# Trainings of a width that show how much they differ: with fewer, nothing is excluded or decided.
MIN_SEEDS = 2
# By how much the deviation of what is known without labels is widened beside a race, where it then
# weighs a quarter: with all its weight it led tasks that were left out astray, with this it helps.
# Of docs/benchmarks/race.md.
UNLABELED_FACTOR = 2.0
NUM_DRAWS = 2000


class NothingToCompareError(ValueError):
    """What is held out of a race has labeled voxels of fewer than two patients: no interval."""


def brief_tolerance(num_updates: int) -> float:
    """Dice that a narrower width may be behind in brief trainings, to lose 0.01 in whole ones.

    Args:
        num_updates: of each training.

    >>> [round(brief_tolerance(updates), 3) for updates in (1, 120, 240, 480, 1000)]
    [0.028, 0.02, 0.014, 0.01, 0.01]
    """
    updates = min(max(num_updates, FEWEST_UPDATES), WHOLE_UPDATES)
    return TOLERANCE * math.sqrt(WHOLE_UPDATES / updates)


def mean_dice(dice: np.ndarray) -> float:
    """Mean over trainings and cases of each class, then over the classes that occur."""
    with_class = np.isfinite(dice).any(axis=(0, 1))
    return float(np.nanmean(dice[..., with_class], axis=(0, 1)).mean())


def leader(dice: Mapping[int, np.ndarray], *, tolerance: float = TOLERANCE) -> int:
    """The smallest width whose mean Dice is within the tolerance of the best.

    Args:
        dice: of each width.
        tolerance: in Dice.

    >>> leader({16: np.array([[[0.8]]]), 8: np.array([[[0.795]]]), 4: np.array([[[0.7]]])})
    8
    """
    means = {width: mean_dice(runs) for width, runs in dice.items()}
    best = max(means.values())
    return min(width for width, mean in means.items() if mean >= best - tolerance)


def best_width(dice: Mapping[int, np.ndarray]) -> int:
    """The width of the highest mean Dice; the narrowest on a tie.

    Args:
        dice: of each width.
    """
    return max(sorted(dice), key=lambda width: mean_dice(dice[width]))


def next_widths(
    ladder: Sequence[int], dice: Mapping[int, np.ndarray], *, tolerance: float = TOLERANCE
) -> tuple[int, ...]:
    """Widths to run next: neighbors of the leader, the narrower one first, which costs less.

    Where the wider neighbor is the best, the curve may still rise, and with it what the leader is
    compared with: then the next wider one runs too. No wider ones do, since in brief trainings the
    curve may rise up to the widest.

    Args:
        ladder: widths, widest first.
        dice: of each width that has run.
        tolerance: in Dice.

    >>> next_widths([32, 16, 8, 4], {16: np.array([[[0.8]]])})
    (8, 32)
    """
    first, best = leader(dice, tolerance=tolerance), best_width(dice)
    widths = [*reversed(neighbors(ladder, first))]
    if best in neighbors(ladder, first):
        widths.append(neighbors(ladder, best)[0])
    return tuple(dict.fromkeys(width for width in widths if width not in dice))


def neighbors(ladder: Sequence[int], width: int) -> tuple[int, ...]:
    """The next wider width of the ladder, the width itself, the next narrower; those that exist.

    >>> neighbors([32, 16, 8], 32)
    (32, 16)
    """
    place = list(ladder).index(width)
    return tuple(ladder[max(place - 1, 0) : place + 2])


def race_steps(
    dice: Mapping[int, np.ndarray],
    *,
    tolerance: float = TOLERANCE,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Log2 of the smallest width within the tolerance of the best, and its standard deviation.

    The deviation is that of the leaders of bootstrap draws. Patients are drawn with replacement,
    the same for all widths, and trainings of each width for itself, as
    :func:`monai_xtiny.training.compare.dice_difference` does.

    Args:
        dice: of each width.
        tolerance: in Dice.
        patients: of each case, drawn with all their cases; default: each case is one.
        seed: of the draws.

    Returns:
        Log2 of the width of the leader, and the deviation over the draws.

    >>> race_steps({8: np.full((1, 4, 1), 0.8), 4: np.full((1, 4, 1), 0.7)})
    (3.0, 0.0)
    """
    widths = sorted(dice)  # narrowest first
    has_class = np.isfinite(dice[widths[0]][0])
    labeled = has_class.any(axis=1)
    generator = np.random.default_rng(seed)
    names = np.arange(labeled.size) if patients is None else np.asarray(patients)
    cases = draw_cases(generator, names[labeled], NUM_DRAWS)
    counts = cases @ has_class[labeled]  # (draws, classes)
    curves = []
    for width in widths:
        runs = inflate_cases(dice[width][:, labeled], names[labeled])
        runs = np.nan_to_num(inflate_deviations(runs, 0))
        shares = draw_counts(generator, len(runs), NUM_DRAWS) / len(runs)
        sums = np.einsum("ds,dn,snc->dc", shares, cases, runs, optimize=True)
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        curves.append(means.sum(axis=1) / np.maximum((counts > 0).sum(axis=1), 1))
    stacked = np.stack(curves, axis=1)
    first = (stacked >= stacked.max(axis=1, keepdims=True) - tolerance).argmax(axis=1)
    steps = np.log2(np.asarray(widths, dtype=float))[first]
    return math.log2(leader(dice, tolerance=tolerance)), float(steps.std())


def discounted(belief: Belief) -> Belief:
    """What is known without labels, as far as it counts beside a race.

    >>> discounted(Belief(3.0, 0.9))
    Belief(mean=3.0, sd=1.8)
    """
    return Belief(belief.mean, UNLABELED_FACTOR * belief.sd)


def raced_belief(
    belief: Belief,
    dice: Mapping[int, np.ndarray],
    *,
    ladder: Sequence[int],
    tolerance: float = TOLERANCE,
    patients: Sequence[str] | None = None,
) -> Belief:
    """What is known of the width after a race.

    What a brief training is off by, against a whole one, adds to the deviation of its answer. It is
    more where a neighbor of the leader has run once, or has not run since time or a budget ended.

    Args:
        belief: before it, without labels.
        dice: of each width that has run; a single one says nothing.
        ladder: all widths, widest first.
        tolerance: in Dice.
        patients: of each case; default: each case is one.
    """
    if len(dice) < 2:
        return belief
    steps, sd = race_steps(dice, tolerance=tolerance, patients=patients)
    beside = neighbors(ladder, leader(dice, tolerance=tolerance))
    is_whole = all(len(dice.get(width, ())) >= MIN_SEEDS for width in beside)
    return discounted(belief).updated(steps, math.hypot(sd, RACE_SD if is_whole else STOPPED_SD))
