# Written by monai_xtiny 0.2.0, which need not be installed.
"""Results that lie where their images lie, value by value of the NIfTI header."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# What a NIfTI header says of where its voxels lie, besides pixdim.
_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def on_grid_of(image: Any, voxels: np.ndarray) -> Any:
    """A NIfTI image of other voxels with the sform, qform, codes, spacing and units of an image.

    Args:
        image: nibabel's, as its file has it.
        voxels: of the shape of the image, or with an axis of channels behind it.

    Raises:
        ValueError: they are not on the grid of the image.
    """
    shape = image.shape[:3]
    if voxels.shape[: len(shape)] != shape and voxels.size != math.prod(shape):
        raise ValueError(f"the image has shape {shape}, its result {voxels.shape}")
    is_label = voxels.size == math.prod(shape)
    written = type(image)(voxels.reshape(shape) if is_label else voxels, None, dtype=voxels.dtype)
    for name in _GEOMETRY:
        written.header[name] = image.header[name]
    written.header["pixdim"][:4] = image.header["pixdim"][:4]
    return written
