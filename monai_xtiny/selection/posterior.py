r"""How likely each width is the smallest that suffices: a prior, and what updates it. NumPy only.

All is told on the scale of :math:`\log_2 c`, where the widths of a ladder are one step apart. The
prior is normal, about what trained tasks needed; each piece of evidence is a value on that scale
which is off by a normal error, as it was on trained tasks. So the posterior is normal too, and the
means are weighted by their precisions. The numbers come from docs/benchmarks/race.md, where each
task was judged by those fitted on the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# What trained tasks with one foreground class needed, in log2 of the width; how much more with each
# doubling of the classes, background included; and the deviation from both.
PRIOR_MEAN, PRIOR_SLOPE, PRIOR_SD = 3.36, 0.72, 1.43
# Where the curve of alignment falls below its threshold, against what the task needed. Both
# deviations are what makes tasks that are left out likeliest, 1.6 times those of the tasks fitted.
ALIGNMENT_BIAS, ALIGNMENT_SD = 0.02, 1.60
# The loss, in Dice: of a width that is k steps too narrow, beyond the tolerance of 0.01; and of
# each step that it is wider than need be, for which that tolerance is the price.
NARROW_LOSS, NARROW_POWER, WIDE_LOSS = 0.0125, 2.7, 0.01
# Probabilities under this are not worth listing.
_MIN_SHARE = 0.005


@dataclass(frozen=True)
class Belief:
    """What is known of the smallest width that suffices: a normal distribution of its log2.

    Args:
        mean: of log2 of the width.
        sd: standard deviation, in steps of the ladder.
    """

    mean: float
    sd: float

    def updated(self, value: float, sd: float) -> Belief:
        """What is known after a measurement.

        Args:
            value: what was measured, in log2 of the width.
            sd: of its error.

        >>> Belief(3.0, 1.0).updated(5.0, 1.0).mean
        4.0
        """
        precisions = (self.sd**-2, sd**-2)
        total = sum(precisions)
        return Belief(
            (self.mean * precisions[0] + value * precisions[1]) / total, 1 / math.sqrt(total)
        )

    def shares(self, widths: Sequence[int]) -> dict[int, float]:
        """Probability of each width of a ladder, widest first; they sum to 1.

        >>> {width: round(share, 2) for width, share in Belief(3, 0.5).shares([16, 8, 4]).items()}
        {16: 0.11, 8: 0.79, 4: 0.11}
        """
        steps = np.log2(np.asarray(widths, dtype=float)) - self.mean
        weights = np.exp(-0.5 * (steps / self.sd) ** 2 + 0.5 * np.min((steps / self.sd) ** 2))
        return dict(zip(map(int, widths), (weights / weights.sum()).tolist(), strict=True))


def prior_belief(num_classes: int) -> Belief:
    """What trained tasks say of a new one, before it is looked at.

    Args:
        num_classes: background included.

    >>> round(2 ** prior_belief(2).mean, 1)
    10.3
    """
    doublings = math.log2(max(num_classes, 2)) - 1
    return Belief(PRIOR_MEAN + PRIOR_SLOPE * doublings, PRIOR_SD)


def crossing(curve: Mapping[int, float], threshold: float) -> float:
    """Where a curve over widths falls below a threshold, in log2 of the width, interpolated.

    Args:
        curve: a value by width, widest first.
        threshold: to fall below.

    Returns:
        The widest width's where even that is below, the narrowest one's where none is.

    >>> crossing({16: 0.5, 8: 0.3, 4: 0.1}, 0.2)
    2.5
    """
    steps = [math.log2(width) for width in curve]
    values = list(curve.values())
    for index, value in enumerate(values):
        if value < threshold:
            if index == 0:
                return steps[0]
            share = (values[index - 1] - threshold) / (values[index - 1] - value)
            return steps[index - 1] + share * (steps[index] - steps[index - 1])
    return steps[-1]


def expected_losses(shares: Mapping[int, float]) -> dict[int, float]:
    r"""What each width is expected to cost, in Dice.

    .. math:: L(c) = \sum_o p(o) \begin{cases}
        \ell k^{2.7} & k = \log_2 (o / c) > 0 \text{: too narrow}\\
        -0.01\, k & \text{otherwise}\end{cases}

    Args:
        shares: probability of each width to be the smallest that suffices.
    """
    return {
        width: sum(share * _loss(math.log2(needed / width)) for needed, share in shares.items())
        for width in shares
    }


def least_loss(shares: Mapping[int, float], *, among: Collection[int] | None = None) -> int:
    """The width that is expected to cost least; the narrower on a tie.

    Args:
        shares: probability of each width to be the smallest that suffices.
        among: widths to choose from; default: all.

    >>> least_loss({32: 0.1, 16: 0.5, 8: 0.3, 4: 0.1})
    16
    """
    losses = expected_losses(shares)
    return min(among or losses, key=lambda width: (losses[width], width))


def expected_dice_lost(shares: Mapping[int, float], width: int) -> float:
    r"""Dice that a width is expected to lose against one that suffices, beyond the tolerance.

    .. math:: D(c) = \sum_{o > c} p(o)\, \ell\, \big(\log_2 (o / c)\big)^{2.7}

    It is the narrow part of :func:`expected_losses`; the tolerance is 0.01 Dice.

    Args:
        shares: probability of each width to be the smallest that suffices.
        width: to use.

    >>> expected_dice_lost({16: 0.5, 8: 0.5}, 16), expected_dice_lost({16: 0.5, 8: 0.5}, 8)
    (0.0, 0.00625)
    """
    steps = {needed: math.log2(needed / width) for needed in shares}
    return sum((shares[needed] * _loss(k) for needed, k in steps.items() if k > 0), 0.0)


def listed_shares(shares: Mapping[int, float]) -> dict[int, float]:
    """Probabilities that are worth listing, to three digits."""
    return {width: round(share, 3) for width, share in shares.items() if share >= _MIN_SHARE}


def _loss(steps: float) -> float:
    """Of a width that is some steps too narrow, or, below 0, too wide."""
    return NARROW_LOSS * steps**NARROW_POWER if steps > 0 else -WIDE_LOSS * steps
