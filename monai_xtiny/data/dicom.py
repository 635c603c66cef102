"""A DICOM series: its slices in order, where they lie, and the volume that they make.

Axis order is (x, y, z): columns, rows, slices.
"""

from __future__ import annotations

import os
from typing import Any

import nibabel
import numpy as np

from monai_xtiny.data.cases import has_dicom_magic, is_dicom
from monai_xtiny.data.walk import check_regular

_PLACES = ("ImageOrientationPatient", "ImagePositionPatient")


def series_image(folder: str) -> Any:
    """A series as a NIfTI image, its intensities rescaled as MONAI's ``PydicomReader`` does.

    Args:
        folder: of one series of at least two slices.

    Returns:
        nibabel's image, float32 of (columns, rows, slices), its affine to RAS in mm.

    Raises:
        ValueError: the series is none that can be stacked; the message says why.
    """
    slices = read_slices(folder, with_pixels=True)
    if len(slices) < 2:
        raise ValueError("a single slice, which has no place in a volume: convert it to PNG")
    if int(slices[0].get("SamplesPerPixel", 1)) > 1:
        raise ValueError("a series of colors, which makes no volume: convert it")
    shapes = {(int(item.Rows), int(item.Columns)) for item in slices}
    if len(shapes) > 1:
        raise ValueError(f"slices of {len(shapes)} sizes: convert each to a file of its own")
    affine = series_affine(slices)
    affine[:3, :2] *= [float(size) for size in slices[0].PixelSpacing][::-1]
    voxels = np.empty((*slices[0].pixel_array.shape[::-1], len(slices)), np.float32)
    for index, item in enumerate(slices):
        slope, intercept = item.get("RescaleSlope", 1.0), item.get("RescaleIntercept", 0.0)
        pixels = item.pixel_array.astype(np.float32)
        voxels[..., index] = (pixels * float(slope) + float(intercept)).T
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return image


def series_affine(slices: list[Any]) -> np.ndarray:
    """Directions of a series' axes in RAS, that of the slices with their distance in mm, (4, 4).

    Args:
        slices: at least two, in order.

    Raises:
        ValueError: they are not evenly spaced, or do not say where they lie.
    """
    first, count = slices[0], len(slices)
    if any(tag not in item for item in slices for tag in _PLACES):
        raise ValueError("slices that do not say where they lie; convert them to NIfTI")
    orientation = np.asarray(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    positions = np.asarray([item.ImagePositionPatient for item in slices], dtype=float)
    step = (positions[-1] - positions[0]) / (count - 1)
    # MONAI stacks by instance number and takes the slices to be evenly spaced.
    if not np.linalg.norm(step) or np.abs(
        np.diff(positions, axis=0) - step
    ).max() > 0.1 * np.linalg.norm(step):
        raise ValueError("slices that are missing, unevenly spaced or numbered out of order")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = orientation[0], orientation[1], step
    affine[:3, 3] = positions[0]
    affine[:2] *= -1  # DICOM's LPS to RAS
    return affine


def read_slices(folder: str, *, with_pixels: bool = False) -> list[Any]:
    """The slices in a folder, those that MONAI's reader will stack, in its order.

    Args:
        folder: of one series.
        with_pixels: read all of them; else their headers alone.

    Raises:
        ValueError: the folder holds no series, or one that could be read in more than one way.
    """
    import pydicom

    # Like MONAI's reader, which passes over hidden files and what does not begin as DICOM does.
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name[0] != "."]
    for path in paths:
        check_regular(path)
        if os.path.isdir(path):
            raise ValueError(
                f"a folder, {os.path.basename(path)!r}, beside the slices; move it out"
            )
    files = [path for path in paths if is_dicom(path) or has_dicom_magic(path)]
    if not files:
        raise ValueError("a folder without a DICOM file")
    slices = [pydicom.dcmread(path, stop_before_pixels=not with_pixels) for path in files]
    for path, item in zip(files, slices, strict=True):
        if "Rows" not in item or "SegmentSequence" in item:
            kind = item.get("Modality") or getattr(item.get("SOPClassUID"), "name", "no image")
            raise ValueError(
                f"{os.path.basename(path)!r} is a DICOM object without an image ({kind}) beside "
                "the slices; move it out"
            )
        _check_intensities(item)
        for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
            texts = [str(getattr(value, "original_string", value)) for value in item.get(tag) or ()]
            long = next((text for text in texts if len(text) > 16), None)
            # MONAI's reader drops the whole tag, and places the volume as if there were none.
            if long is not None:
                raise ValueError(
                    f"{tag} {long} has more than DICOM's 16 characters; convert it to NIfTI"
                )
    series = {str(item.get("SeriesInstanceUID", "")) for item in slices}
    if len(series) > 1:
        raise ValueError(f"{len(series)} DICOM series in one folder; give each a folder of its own")
    if any(int(item.get("NumberOfFrames", 1)) > 1 for item in slices):
        raise ValueError("a multi-frame DICOM file; convert it to NIfTI")
    if len(slices) > 1:
        numbers = [item.get("InstanceNumber") for item in slices]
        # MONAI's reader leaves out slices without a number.
        if None in numbers or len(set(numbers)) < len(numbers):
            raise ValueError("slices without a number or with the same; convert them to NIfTI")
        slices.sort(key=lambda item: int(item.InstanceNumber))
        _check_alike(slices)
    return slices


def _check_intensities(item: Any) -> None:
    """Refuse pixels that mean another thing than their number, which MONAI's reader takes."""
    meaning = str(item.get("PhotometricInterpretation", "MONOCHROME2"))
    if int(item.get("SamplesPerPixel", 1)) == 1 and meaning != "MONOCHROME2":
        raise ValueError(
            f"pixels of PhotometricInterpretation {meaning}, which are no intensities; convert "
            "them to MONOCHROME2 or NIfTI"
        )
    if "ModalityLUTSequence" in item:
        raise ValueError("pixels with a ModalityLUTSequence; convert them to NIfTI")


def _check_alike(slices: list[Any]) -> None:
    """Refuse slices that lie in other directions than the first, or have other pixels."""
    # Cosines, among them zeros, and sizes, among them those of cells.
    for tag, relative, absolute in (
        ("ImageOrientationPatient", 0, 1e-3),
        ("PixelSpacing", 1e-3, 0),
    ):
        values = [np.asarray(item[tag].value, dtype=float) for item in slices if item.get(tag)]
        if any(not np.allclose(other, values[0], relative, absolute) for other in values):
            raise ValueError(f"slices that differ in {tag}: give each series a folder of its own")
