"""Shape, spacing and channels of images, from their headers; no voxel is read.

Axis order is MONAI's array order after RAS, (x, y[, z]); for PNG and the like (width, height).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation

from monai_xtiny.bundled.gate import check_grids, inspect_file
from monai_xtiny.data.case import Case, Header
from monai_xtiny.data.cases import has_dicom_magic, is_dicom
from monai_xtiny.data.walk import check_regular
from monai_xtiny.system.errors import root_cause


def read_headers(cases: Sequence[Case]) -> tuple[Header, ...]:
    """Read the headers of ``cases``, in threads, and check that they agree with each other.

    Raises:
        ValueError: a file cannot be read, is a 4D volume, or differs from the others in the number
            of dimensions or channels; the message names the case.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        headers = tuple(pool.map(_read_header, cases))
    check_headers(cases, headers)
    return headers


def check_headers(cases: Sequence[Case], headers: Sequence[Header]) -> None:
    """Refuse cases that differ from the first in dimensions or channels.

    Raises:
        ValueError: they do; the message names the case.
    """
    for case, header in zip(cases, headers, strict=True):
        _check_agreement(case, header, cases[0], headers[0])


def _read_header(case: Case) -> Header:
    """Read shape, spacing and channels of one case."""
    headers, opened = [], []
    for path in case.images:
        try:
            opened.append(inspect_file(path))
        except ValueError as error:
            raise ValueError(f"case {case.name!r}: {error} ({path})") from error
        try:
            headers.append(_header_of(case.kind, path, opened[-1]))
        except Exception as error:
            raise ValueError(
                f"case {case.name!r}: {root_cause(error)} ({path}): repair or leave it out"
            ) from error
    for path, header in zip(case.images, headers, strict=True):
        if header.shape != headers[0].shape:
            raise ValueError(
                f"case {case.name!r}: the channels differ in shape, {headers[0].shape} and "
                f"{header.shape} ({path}): resample them to one grid"
            )
    check_grids(case.images, opened)
    return Header(headers[0].shape, headers[0].spacing, sum(h.in_channels for h in headers))


def _header_of(kind: str, path: str, opened: Any) -> Header:
    """Header of one file, or of a DICOM folder."""
    if kind == "nifti":
        return _nifti_header(opened)
    if kind == "dicom":
        return _dicom_header(path)
    return Header((opened.width, opened.height), (1.0, 1.0), len(opened.getbands()))


def _nifti_header(opened: Any) -> Header:
    """Header of a NIfTI file, axes brought to RAS order."""
    # The grid that MONAI's reader will see: where pixdim and affine disagree, it corrects one.
    image = correct_nifti_header_if_necessary(opened)
    shape = tuple(int(size) for size in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise ValueError(
            f"a {len(shape)}D volume of shape {shape}; split it into 3D volumes, one per channel "
            "(CASE_0000, CASE_0001, ...) or time point"
        )
    # float32 in the file: 0.9 mm must not become 0.8999999762.
    spacing = tuple(round(float(size), 5) for size in voxel_sizes(image.affine)[: len(shape)])
    return _in_ras_order(shape, spacing, image.affine)


def _dicom_header(folder: str) -> Header:
    """Header of the DICOM series in a folder, axes brought to RAS order."""
    slices = _dicom_slices(folder)
    first = slices[0]
    row_spacing, column_spacing = (float(s) for s in first.get("PixelSpacing", (1.0, 1.0)))
    shape: tuple[int, ...] = (int(first.Columns), int(first.Rows))
    spacing: tuple[float, ...] = (column_spacing, row_spacing)
    in_channels = int(first.get("SamplesPerPixel", 1))
    if in_channels > 1:
        raise ValueError(f"a DICOM image of {in_channels} colors; convert it to PNG")
    if len(slices) == 1:
        return Header(shape, spacing, in_channels)
    orientation = np.asarray(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    positions = np.asarray([item.ImagePositionPatient for item in slices], dtype=float)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    # MONAI stacks by instance number and takes the slices to be evenly spaced.
    if np.abs(np.diff(positions, axis=0) - step).max() > 0.1 * np.linalg.norm(step):
        raise ValueError("slices that are missing, unevenly spaced or numbered out of order")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = orientation[0], orientation[1], step
    affine[:2] *= -1  # DICOM's LPS to RAS
    slice_spacing = round(float(np.linalg.norm(step)), 6)
    header = _in_ras_order((*shape, len(slices)), (*spacing, slice_spacing), affine)
    return Header(header.shape, header.spacing, in_channels)


def _dicom_slices(folder: str) -> list[Any]:
    """Headers of the slices in a folder, those that MONAI's reader will stack, in its order."""
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
    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    for path, item in zip(files, slices, strict=True):
        if "Rows" not in item or "SegmentSequence" in item:
            kind = item.get("Modality") or getattr(item.get("SOPClassUID"), "name", "no image")
            raise ValueError(
                f"{os.path.basename(path)!r} is a DICOM object without an image ({kind}) beside "
                "the slices; move it out"
            )
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
    return slices


def _in_ras_order(shape: tuple[int, ...], spacing: tuple[float, ...], affine: np.ndarray) -> Header:
    """Permute the axes of a one-channel image as MONAI's ``Orientation("RAS")`` will."""
    if len(shape) == 2:
        return Header(shape, spacing, 1)
    order = np.argsort(io_orientation(affine)[:, 0])
    return Header(tuple(shape[axis] for axis in order), tuple(spacing[axis] for axis in order), 1)


def _check_agreement(case: Case, header: Header, first: Case, expected: Header) -> None:
    """Refuse a case whose dimensions or channels differ from the first one's."""
    if len(header.shape) != len(expected.shape):
        raise ValueError(
            f"case {case.name!r} is {len(header.shape)}D, but {first.name!r} is "
            f"{len(expected.shape)}D: give images of one kind"
        )
    if header.in_channels != expected.in_channels:
        raise ValueError(
            f"case {case.name!r} has {header.in_channels} channels, but {first.name!r} has "
            f"{expected.in_channels}: convert them to the same channels"
        )
