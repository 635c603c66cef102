"""From headers to a U-Net plan, by nnU-Net's rules and from images alone.

The rules are those of nnU-Net v2's default planner (Isensee et al. 2021, Nature Methods 18,
203-211): median spacing, the largest patch that fits its 8 GB reference, pooling while an axis
keeps at least 4 voxels. nnU-Net plans in (z, y, x) with the axis of largest spacing moved to the
front; ties are broken in that order, so the rules run in it here too, and everything that leaves
this module is in MONAI's array order (x, y[, z]).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from monai_xtiny.data.case import Case, Header
from monai_xtiny.data.cases import find_cases, sample_cases
from monai_xtiny.data.headers import check_headers, read_headers
from monai_xtiny.data.images import measure_nonzero
from monai_xtiny.plan.unet_plan import UNetPlan

MAX_HEADERS = 512
_BASE_FEATURES = 32
_MAX_FEATURES = {2: 512, 3: 320}
_MIN_EDGE = 4
_ANISOTROPY = 3
# Feature map voxels that nnU-Net equates with 8 GB, and the batch size that they were measured at.
_REFERENCE_VOXELS = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
_INITIAL_VOXELS = {2: 2048**2, 3: 256**3}
# nnU-Net's spacing for the missing axis of a 2D image, larger than any other.
_IMAGE_SPACING = 999.0


@dataclass(frozen=True)
class Fingerprint:
    """What planning needs to know of a data set.

    Args:
        shapes: voxels of each case inside its nonzero box, (x, y[, z]).
        spacings: mm of each case, (x, y[, z]).
        in_channels: channels of every case.
    """

    shapes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...]
    in_channels: int

    @property
    def spatial_dims(self) -> int:
        """Dimensions of the images themselves: 2 or 3."""
        return len(self.shapes[0])


def plan_images(
    images: str | os.PathLike[str] | Sequence[Case],
    *,
    spatial_dims: int | None = None,
    out_channels: int = 2,
    num_images: int | None = 16,
    seed: int = 369,
    headers: Mapping[Case, Header] | None = None,
    loading: Callable[..., Any] | None = None,
    progress: bool = False,
) -> UNetPlan:
    """Plan the U-Net of a data set from unlabeled images.

    Args:
        images: whatever :func:`monai_xtiny.find_cases` takes, or its cases.
        spatial_dims: 2 or 3; ``None`` plans 3D for volumes and 2D for images.
        out_channels: classes, background included; nnU-Net's memory estimate counts them.
        num_images: of these a seeded sample is read in full, to crop empty borders as nnU-Net does;
            of the others only headers are read, at most 512.
        seed: of both samples.
        headers: those read already, which are not read again.
        loading: as for :func:`monai_xtiny.data.measure_nonzero`.
        progress: show a bar on stderr.

    Returns:
        The plan of the full network.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: images are unreadable or contradict each other, or cannot be planned for.
    """
    cases = find_cases(images) if isinstance(images, (str, os.PathLike)) else tuple(images)
    fingerprint = extract_fingerprint(
        cases,
        num_images=num_images,
        seed=seed,
        headers=headers,
        loading=loading,
        progress=progress,
    )
    return plan_fingerprint(fingerprint, spatial_dims=spatial_dims, out_channels=out_channels)


def extract_fingerprint(
    cases: Sequence[Case],
    *,
    num_images: int | None = 16,
    seed: int = 369,
    headers: Mapping[Case, Header] | None = None,
    loading: Callable[..., Any] | None = None,
    progress: bool = False,
) -> Fingerprint:
    """Collect shapes and spacings of a seeded sample of cases.

    nnU-Net reads every case in full to crop it to its nonzero box. Here ``num_images`` are, and the
    median share that their boxes keep stands for the other headers.

    Args:
        cases: all cases of the data set.
        num_images: how many are read in full; ``None`` for all.
        seed: of that sample, and of the 512 headers.
        headers: those read already, which are not read again.
        loading: as for :func:`monai_xtiny.data.measure_nonzero`.
        progress: show a bar on stderr.

    Raises:
        ValueError: a case is unreadable, or differs in dimensions or channels.
    """
    if not cases:
        raise ValueError("no cases: give at least one image")
    in_full = sample_cases(cases, num_images, seed=seed)
    others = sample_cases(cases, MAX_HEADERS, seed=seed)
    looked_at = tuple(dict.fromkeys((*in_full, *others)))
    known = dict(headers or {})
    unread = [case for case in looked_at if case not in known]
    known.update(zip(unread, read_headers(unread), strict=True))
    in_order = [known[case] for case in looked_at]
    check_headers(looked_at, in_order)
    boxes = measure_nonzero(
        in_full, headers=in_order[: len(in_full)], loading=loading, progress=progress
    )
    full_shapes = [header.shape for header in in_order]
    kept = np.median(np.divide(boxes, full_shapes[: len(boxes)]), axis=0)
    rest = [
        tuple(max(1, round(size * share)) for size, share in zip(shape, kept, strict=True))
        for shape in full_shapes[len(boxes) :]
    ]
    return Fingerprint(
        (*boxes, *rest), tuple(header.spacing for header in in_order), in_order[0].in_channels
    )


def plan_fingerprint(
    fingerprint: Fingerprint, *, spatial_dims: int | None = None, out_channels: int = 2
) -> UNetPlan:
    """Apply nnU-Net's planning rules to a fingerprint.

    Raises:
        ValueError: ``spatial_dims`` is 3 for 2D images or single slices, or neither 2 nor 3.

    >>> heart = Fingerprint(((237, 208, 9),) * 3, ((1.56, 1.56, 10.0),) * 3, 1)
    >>> plan_fingerprint(heart).strides[1]
    (2, 2, 1)
    """
    if spatial_dims not in (None, 2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}: give 2 or 3")
    shapes = np.asarray(fingerprint.shapes)[:, ::-1]
    spacings = np.asarray(fingerprint.spacings, dtype=float)[:, ::-1]
    of_images = fingerprint.spatial_dims == 2
    if of_images:
        shapes = np.insert(shapes, 0, 1, axis=1)
        spacings = np.insert(spacings, 0, _IMAGE_SPACING, axis=1)
    target = _target_spacing(shapes, spacings)
    slice_axis = int(np.argmax(target))
    order = [slice_axis, *(axis for axis in range(3) if axis != slice_axis)]
    # As Python floats, whose round() nnU-Net uses.
    resampled = [
        [
            int(round(float(old) / float(new) * float(size)))
            for old, new, size in zip(spacing, target, shape, strict=True)
        ]
        for spacing, shape in zip(spacings, shapes, strict=True)
    ]
    median_shape = np.median(resampled, axis=0)[order]
    is_flat = median_shape[0] == 1
    if spatial_dims is None:
        spatial_dims = 2 if is_flat else 3
    if spatial_dims == 3 and is_flat:
        raise ValueError("a 3D plan for single slices: give --spatial_dims 2")
    axes = order if spatial_dims == 3 else order[1:]
    spacing = target[axes].tolist()
    patch_size, strides, kernels = _fit_topology(
        spacing, median_shape[-spatial_dims:].tolist(), out_channels
    )

    return UNetPlan(
        spatial_dims=spatial_dims,
        in_channels=fingerprint.in_channels,
        out_channels=out_channels,
        spacing=in_array_order(spacing, axes),
        patch_size=in_array_order(patch_size, axes),
        kernel_size=tuple(in_array_order(kernel, axes) for kernel in kernels),
        strides=tuple(in_array_order(stride, axes) for stride in strides),
        features_per_stage=_features(len(strides), spatial_dims),
        slice_axis=None if of_images or spatial_dims == 3 else 2 - slice_axis,
    )


def in_array_order(values: Sequence[Any], axes: Sequence[int]) -> tuple[Any, ...]:
    """Bring nnU-Net's values, one per axis, to MONAI's array order.

    Args:
        values: in nnU-Net's transposed order.
        axes: nnU-Net's axis (0, 1, 2 for z, y, x) of each value.

    >>> in_array_order(["slices", "z", "y"], [2, 0, 1])  # the slices are along x
    ('slices', 'y', 'z')
    """
    return tuple(value for _, value in sorted(zip(axes, values, strict=True), reverse=True))


def _features(num_stages: int, spatial_dims: int) -> tuple[int, ...]:
    """Channels of each stage: 32, doubled, up to 512 (2D) or 320 (3D)."""
    limit = _MAX_FEATURES[spatial_dims]
    return tuple(min(_BASE_FEATURES * 2**stage, limit) for stage in range(num_stages))


def _target_spacing(shapes: np.ndarray, spacings: np.ndarray) -> np.ndarray:
    """Median spacing; a thick axis gets its 10th percentile, so that few slices are invented."""
    target = np.percentile(spacings, 50, axis=0)
    sizes = np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    finest = max(target[axis] for axis in others)
    if target[worst] > _ANISOTROPY * finest and sizes[worst] * _ANISOTROPY < min(sizes[others]):
        thick = np.percentile(spacings[:, worst], 10)
        target[worst] = max(finest, thick) + 1e-5 if thick < finest else thick
    return target


def _fit_topology(
    spacing: Sequence[float], median_shape: Sequence[float], out_channels: int
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Largest patch of the median's aspect that fits nnU-Net's reference, with its topology."""
    dims = len(spacing)
    fineness = 1 / np.asarray(spacing)
    initial = fineness * (_INITIAL_VOXELS[dims] / np.prod(fineness)) ** (1 / dims)
    patch = [min(round(size), limit) for size, limit in zip(initial, median_shape, strict=True)]
    strides, kernels, patch, divisors = _topology(spacing, patch)
    limit = _REFERENCE_VOXELS[dims]
    while _feature_map_voxels(patch, strides, out_channels) / _REFERENCE_BATCH[dims] * 2 > limit:
        # Shrink the axis that is largest against the median; ties go to the last.
        axis = int(
            np.argsort([size / full for size, full in zip(patch, median_shape, strict=True)])[-1]
        )
        smaller = list(patch)
        smaller[axis] -= divisors[axis]
        # The step is the divisor of the smaller patch: with the larger one valid sizes are skipped.
        patch[axis] -= _topology(spacing, smaller)[3][axis]
        strides, kernels, patch, divisors = _topology(spacing, patch)
    return patch, strides, kernels


def _topology(
    spacing: Sequence[float], patch_size: Sequence[float]
) -> tuple[list[list[int]], list[list[int]], list[int], list[int]]:
    """Strides, kernels, the patch padded to be divisible, and its divisors, by nnU-Net's rules."""
    dims = len(spacing)
    current_spacing = [float(size) for size in spacing]
    current_size = [float(size) for size in patch_size]
    kernel = [1] * dims
    divisors = [1] * dims
    strides = [[1] * dims]
    kernels: list[list[int]] = []
    while True:
        poolable = [axis for axis in range(dims) if current_size[axis] >= 2 * _MIN_EDGE]
        if not poolable:
            break
        finest = min(current_spacing[axis] for axis in poolable)
        poolable = [axis for axis in poolable if current_spacing[axis] / finest < 2]
        if len(poolable) == 1 and current_size[poolable[0]] < 3 * _MIN_EDGE:
            break
        for axis in range(dims):
            if current_spacing[axis] / min(current_spacing) < 2:
                kernel[axis] = 3
        for axis in poolable:
            divisors[axis] *= 2
            current_spacing[axis] *= 2
            current_size[axis] = ceil(current_size[axis] / 2)
        strides.append([2 if axis in poolable else 1 for axis in range(dims)])
        kernels.append(list(kernel))
    kernels.append([3] * dims)
    padded = [
        int(ceil(size / step) * step) for size, step in zip(patch_size, divisors, strict=True)
    ]
    return strides, kernels, padded, divisors


def _feature_map_voxels(
    patch_size: Sequence[int], strides: Sequence[Sequence[int]], out_channels: int
) -> int:
    """Voxels of all feature maps that nnU-Net's PlainConvUNet makes of one patch."""
    features = _features(len(strides), len(patch_size))
    total = 0
    sizes = []
    size = list(patch_size)
    for stride, channels in zip(strides, features, strict=True):
        size = [edge // step for edge, step in zip(size, stride, strict=True)]
        sizes.append(prod(size))
        total += 2 * channels * sizes[-1]
    # Each decoder level: a transposed convolution and two convolutions.
    total += sum(
        3 * channels * voxels for channels, voxels in zip(features[:-1], sizes[:-1], strict=True)
    )
    return total + out_channels * sizes[0]
