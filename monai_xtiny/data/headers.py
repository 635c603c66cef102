"""Shape, spacing and channels of images, from their headers; no voxel is read.

Axis order is MONAI's array order after RAS, (x, y[, z]); for PNG and the like (width, height).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation

from monai_xtiny.bundled.gate import check_grids, inspect_file, settle_affine
from monai_xtiny.data.case import Case, Header
from monai_xtiny.data.dicom import read_slices, series_affine
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
    return replace(headers[0], in_channels=sum(header.in_channels for header in headers))


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
    image = settle_affine(opened)
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
    slices = read_slices(folder)
    first = slices[0]
    row_spacing, column_spacing = (float(s) for s in first.get("PixelSpacing", (1.0, 1.0)))
    shape: tuple[int, ...] = (int(first.Columns), int(first.Rows))
    spacing: tuple[float, ...] = (column_spacing, row_spacing)
    in_channels = int(first.get("SamplesPerPixel", 1))
    if in_channels > 1:
        raise ValueError(f"a DICOM image of {in_channels} colors; convert it to PNG")
    if len(slices) == 1:
        return Header(shape, spacing, in_channels)
    affine = series_affine(slices)
    slice_spacing = round(float(np.linalg.norm(affine[:3, 2])), 6)
    return _in_ras_order((*shape, len(slices)), (*spacing, slice_spacing), affine)


def _in_ras_order(shape: tuple[int, ...], spacing: tuple[float, ...], affine: np.ndarray) -> Header:
    """Permute the axes of a one-channel image as MONAI's ``Orientation("RAS")`` will."""
    if len(shape) == 2:
        return Header(shape, spacing, 1)
    order = tuple(int(axis) for axis in np.argsort(io_orientation(affine)[:, 0]))
    return Header(
        tuple(shape[axis] for axis in order), tuple(spacing[axis] for axis in order), 1, order
    )


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
