"""A case, what its header says, and what is loaded of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_READERS = {"nifti": "NibabelReader", "raster": "PILReader", "dicom": "PydicomReader"}


@dataclass(frozen=True)
class Case:
    """One patient's image, in one file or in one file per channel.

    Args:
        name: path of the first file (DICOM: of the folder) relative to where the search looked.
        images: the files, one per channel; for DICOM the folder of the series.
        kind: ``nifti``, ``raster`` (PNG, JPG, TIFF, BMP) or ``dicom``.
    """

    name: str
    images: tuple[str, ...]
    kind: str

    @property
    def reader(self) -> str:
        """Name of MONAI's reader for these files."""
        return _READERS[self.kind]


@dataclass(frozen=True)
class Header:
    """What a header says about an image: everything but its voxels.

    Args:
        shape: voxels along each axis, (x, y[, z]) after RAS.
        spacing: mm along each axis; 1 for images without a physical size.
        in_channels: channels of the case, all files together.
        stored_axes: axis of the file that lies along x, y and z.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    in_channels: int
    stored_axes: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Sample:
    """Preprocessed images, ready to be scored.

    Args:
        names: of the cases, in the order of the images.
        images: plain tensors of one shape, ``(C, *patch_size)``.
        seconds: wall time that loading took.
    """

    names: tuple[str, ...]
    images: tuple[torch.Tensor, ...]
    seconds: float = 0.0
