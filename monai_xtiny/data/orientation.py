"""Whether the images of a data set lie alike, as scans of bodies do and fields of nuclei do not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d

from monai_xtiny.data.case import Case
from monai_xtiny.data.images import load_case

MIN_IMAGES = 16
# What is left of an image: where it is bright and where dark.
_GRID = 16


def measure_orientation(
    cases: Sequence[Case], transform: Callable[[Mapping[Hashable, Any]], Any]
) -> float | None:
    """By how much the images of a data set lie alike; see :func:`shared_orientation`.

    Args:
        cases: 2D images; of fewer than 16 nothing is said, and nothing is read.
        transform: the preprocessing of the search: ``{"image": files}`` becomes
            ``{"image": tensor of shape (C, *patch_size)}``.

    Raises:
        ValueError: a case cannot be read; the message names it.
    """
    if len(cases) < MIN_IMAGES:
        return None
    images = (load_case(case, transform).as_subclass(torch.Tensor) for case in cases)
    return shared_orientation([_shrink(image) for image in images])


def shared_orientation(images: Sequence[torch.Tensor]) -> float:
    """By how much more two images are alike as they lie than where one is turned over.

    The mean over all pairs of the correlation of the two, less that of one with the other turned by
    180 degrees, both averaged over their channels and down to 16 x 16: from -2 to 2, and near 0
    where structures lie anyhow.

    Args:
        images: at least two, each of shape ``(C, x, y)``.

    >>> top = torch.zeros(1, 32, 32)
    >>> top[:, :, :8] = 1
    >>> [round(shared_orientation([top, other]), 2) for other in (top, top.flip(-1))]
    [1.33, -1.33]
    """
    rows = torch.stack([_shrink(image) for image in images]).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    gain = rows @ (rows - rows.flip(1)).T
    others = len(rows) * (len(rows) - 1)
    return float((gain.sum() - gain.diagonal().sum()) / others)


def _shrink(image: torch.Tensor) -> torch.Tensor:
    """The mean of an image's channels at 16 x 16; shape (1, 16, 16)."""
    return adaptive_avg_pool2d(image.mean(0, keepdim=True).double(), _GRID)
