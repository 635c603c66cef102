r"""What the bootstraps of this package share: draws with replacement, and the missing variance.

A bootstrap of ``n`` values sees only :math:`(n - 1) / n` of the variance of their mean. So the
deviations are first inflated by :math:`\sqrt{n / (n - 1)}`.
"""

from __future__ import annotations

import numpy as np


def draw_counts(generator: np.random.Generator, count: int, num_draws: int) -> np.ndarray:
    """How often each of ``count`` things is drawn with replacement, (num_draws, count).

    >>> draw_counts(np.random.default_rng(0), 3, 5).sum(axis=1)
    array([3, 3, 3, 3, 3])
    """
    return generator.multinomial(count, [1 / count] * count, num_draws)


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
