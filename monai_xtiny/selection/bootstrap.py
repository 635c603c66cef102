r"""What the bootstraps of this package share: draws with replacement, and the missing variance.

A bootstrap of ``n`` values sees only :math:`(n - 1) / n` of the variance of their mean. So the
deviations are first inflated by :math:`\sqrt{n / (n - 1)}`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_counts(generator: np.random.Generator, count: int, num_draws: int) -> np.ndarray:
    """How often each of ``count`` things is drawn with replacement, (num_draws, count).

    >>> draw_counts(np.random.default_rng(0), 3, 5).sum(axis=1)
    array([3, 3, 3, 3, 3])
    """
    return generator.multinomial(count, [1 / count] * count, num_draws)


def draw_cases(
    generator: np.random.Generator, patients: Sequence[str | int], num_draws: int
) -> np.ndarray:
    """How often each case is drawn, (num_draws, cases): all cases of a drawn patient.

    Args:
        generator: that draws as many patients as there are, with replacement.
        patients: of each case.
        num_draws: of the bootstrap.

    >>> draw_cases(np.random.default_rng(0), ["a", "a", "b"], 3)
    array([[1, 1, 1],
           [1, 1, 1],
           [0, 0, 2]])
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    return draw_counts(generator, len(names), num_draws)[:, index]


def inflate_cases(values: np.ndarray, patients: Sequence[str | int]) -> np.ndarray:
    """Move the Dice of cases away from their mean until a bootstrap has the right variance.

    Args:
        values: (seeds, cases, classes), NaN where a case lacks the class.
        patients: of each case; those that have a class are counted.

    >>> inflate_cases(np.array([[[0.0], [1.0]]]), ["a", "b"]).ravel().round(2)
    array([-0.21,  1.21])
    """
    has_class = np.isfinite(values[0])
    names = np.asarray(patients)
    counts = np.array([len(np.unique(names[has])) for has in has_class.T])
    factors = np.sqrt(counts / np.maximum(counts - 1, 1))
    sums = np.nansum(values, axis=1, keepdims=True)
    means = sums / np.maximum(has_class.sum(axis=0), 1)
    return values + (factors - 1) * (values - means)


def inflate_deviations(values: np.ndarray, axis: int, *, over: int | None = None) -> np.ndarray:
    """Move values along an axis away from their mean until a bootstrap has the right variance.

    A single one stays as it is.

    Args:
        values: of any shape.
        axis: that is drawn from.
        over: axis over which the values are averaged first: what is moved apart then is these
            means, and what differs between them otherwise stays.

    >>> inflate_deviations(np.array([-1.0, 1.0]), 0)
    array([-1.41421356,  1.41421356])
    """
    count = values.shape[axis]
    means = values if over is None else values.mean(axis=over, keepdims=True)
    deviations = means - means.mean(axis=axis, keepdims=True)
    return values + (np.sqrt(count / max(count - 1, 1)) - 1) * deviations
