"""Whether 2D images share an orientation, as scans of bodies do and fields of nuclei do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from monai_xtiny.data.case import Case
from monai_xtiny.data.cases import sample_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.data.images import load_case, read_once

# Fewer show an orientation by chance (docs/benchmarks/recipes.md).
MIN_IMAGES = 24
NUM_IMAGES = 32
# What is left of an image: where it is bright and where dark.
_GRID = 16


def measure_orientation(
    cases: Sequence[Case],
    *,
    seed: int = 369,
    loading: Callable[..., Any] | None = None,
    progress: bool = False,
) -> float | None:
    """How much the images of a data set share an orientation; see :func:`shared_orientation`.

    Args:
        cases: all 2D images of the data set; a seeded sample of 32 is read in full.
        seed: of the sample.
        loading: as for :func:`monai_xtiny.data.images.measure_nonzero`.
        progress: show a bar on stderr.

    Returns:
        The measure, to four decimals; ``None`` of fewer than 24 images, which are not read.

    Raises:
        ValueError: a case cannot be read; the message names it.
    """
    drawn = sample_cases(cases, NUM_IMAGES, seed=seed)
    if len(drawn) < MIN_IMAGES:
        return None
    read_headers(drawn)  # refuses what no reader should open
    reading = read_once(loading, drawn[0])
    bar = tqdm(
        drawn, desc="orientation", unit="image", disable=None if progress else True, leave=False
    )
    return round(shared_orientation(load_case(case, reading.peek) for case in bar), 4)


def shared_orientation(images: Iterable[torch.Tensor]) -> float:
    """How much more alike two images are as they lie than with one rotated by 180 degrees.

    With r the correlation of two images and R the rotation it is the mean of
    r(a, b) - r(a, R b) over all pairs: from -2 to 2, near 0 for images in any orientation. Channels
    are averaged down to 16 x 16, z-scored and averaged. A constant image is like no other.

    Args:
        images: at least two, each of shape ``(C, x, y)``.

    >>> top = torch.zeros(1, 32, 32)
    >>> top[:, :, :8] = 1
    >>> [round(shared_orientation([top, other]), 2) for other in (top, top.flip(-1))]
    [1.33, -1.33]
    """
    rows = torch.stack([_shrink(image) for image in images])
    gain = rows @ (rows - rows.flip(1)).T
    num_pairs = len(rows) * (len(rows) - 1)
    return float((gain.sum() - gain.diagonal().sum()) / num_pairs)


def _shrink(image: torch.Tensor) -> torch.Tensor:
    """An image at 16 x 16 as a vector of mean 0 and length 1, or of zeros; shape (256,)."""
    plain = image.as_subclass(torch.Tensor).double()
    channels = _unit(adaptive_avg_pool2d(plain, _GRID).flatten(1))
    return _unit(channels.mean(0))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of mean 0 and length 1; zeros where a row is constant or not finite."""
    rows = rows - rows.mean(-1, keepdim=True)
    length = rows.norm(dim=-1, keepdim=True)
    return torch.nan_to_num(rows / length, nan=0.0, posinf=0.0, neginf=0.0)
