"""The rule `alignment`: the smallest width that keeps enough of the images, and its votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai_xtiny.scores.table import ScoreTable


# The share of an image's features that a width must keep, to lose less than 0.005 Dice: fitted on
# the synthetic tasks of docs/benchmarks/selection.md.
THRESHOLD = 0.26
NUM_RESAMPLES = 1000


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
