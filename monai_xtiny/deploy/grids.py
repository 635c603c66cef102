"""A volume on the grid of a network and back: what ``inference.json`` does, in NumPy.

The steps are those of ``monai_xtiny/plan/preprocessing.py``: ``Orientationd`` to RAS,
``CropForegroundd``, ``Spacingd``, and their inverses. Axis order is C, *spatial = (x, y[, z]).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

# What MONAI takes for the same spacing or grid, mm, and off-diagonal entries for none.
_TOLERANCE, _TINY = 1e-3, 1e-6
# Planes that are resampled at a time.
_PLANES = 16


@dataclass(frozen=True)
class GridPlacement:
    """How a volume was brought to the grid of a network.

    Args:
        axes: of the file, in the order of the network's.
        flipped: whether each of the file's axes runs against the network's.
        box: the voxels that are not 0 in every channel, after turning.
        shape: voxels of the grid of the network.
        matrix: from voxels of the grid to those of the box, (4, 4); ``None`` where they are one.
    """

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    matrix: np.ndarray | None = None

    def view(self, array: NDArray) -> NDArray:
        """The box of an array (C, *spatial) on the grid of the file, turned as the network's."""
        turns = (slice(None), *(slice(None, None, -1 if turned else 1) for turned in self.flipped))
        order = (0, *(axis + 1 for axis in self.axes))
        box = (slice(None), *self.box)
        return array[turns].transpose(order)[box]

    def restore(self, slabs: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """Slabs (K, n, *others) of the network's grid as slabs of the box, along the first axis."""
        size = tuple(part.stop - part.start for part in self.box)
        if self.matrix is None:
            yield from slabs
            return
        back = np.linalg.inv(self.matrix)
        if not _is_diagonal(back):  # a sheared grid: planes of one are no planes of the other
            logits = np.concatenate(list(slabs), axis=1)
            yield np.stack([_resample_sheared(channel, back, size) for channel in logits])
            return
        yield from _resample_slabs(slabs, self.shape, _grid_positions(back, self.shape, size))


def to_grid(
    image: NDArray[np.float32], affine: np.ndarray, spacing: Sequence[float] | None
) -> tuple[NDArray[np.float32], GridPlacement]:
    """Bring an image to the grid of a network; 2D images are cropped alone.

    Args:
        image: intensities of the file, (C, *spatial).
        affine: from voxels to RAS in mm, (4, 4).
        spacing: mm along each axis after turning, -1 to leave it; ``None`` for 2D images, which
            are neither turned nor resampled.

    Returns:
        The image, not normalized, contiguous and its own; and how it was placed.
    """
    dims = image.ndim - 1
    axes, flipped = tuple(range(dims)), (False,) * dims
    whole = tuple(slice(0, edge) for edge in image.shape[1:])
    if spacing is not None:
        turns = io_orientation(affine)
        affine = affine @ inv_ornt_aff(turns, image.shape[1:])
        axes = tuple(int(axis) for axis in np.argsort(turns[:, 0]))
        flipped = tuple(bool(sign < 0) for sign in turns[:, 1])
        whole = tuple(slice(0, image.shape[1 + axis]) for axis in axes)
    turned = GridPlacement(axes, flipped, whole, ()).view(image)
    box = _find_content(turned)
    inside = (slice(None), *box)
    cropped = turned[inside]
    size = cropped.shape[1:]
    if spacing is None:
        return np.array(cropped, np.float32, order="C"), GridPlacement(axes, flipped, box, size)
    origin = np.eye(4)
    origin[:3, 3] = [part.start for part in box]
    shape, matrix = _target_grid(size, affine @ origin, spacing)
    if matrix is None:
        return np.array(cropped, np.float32, order="C"), GridPlacement(axes, flipped, box, size)
    placement = GridPlacement(axes, flipped, box, shape, matrix)
    if not _is_diagonal(matrix):
        sheared = [_resample_sheared(channel, matrix, shape) for channel in cropped]
        return np.stack(sheared), placement
    resampled = np.empty((len(image), *shape), np.float32)
    positions = _grid_positions(matrix, size, shape)
    at = 0
    for slab in _resample_slabs(_cut(cropped), size, positions):
        resampled[:, at : at + slab.shape[1]] = slab
        at += slab.shape[1]
    return resampled, placement


def _find_content(image: NDArray) -> tuple[slice, ...]:
    """The box of the voxels that are not 0 in every channel, plane by plane."""
    found = []
    for axis in range(1, image.ndim):
        planes = np.moveaxis(image, axis, 0)
        filled = np.array([plane.any() for plane in planes]).nonzero()[0]
        found.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(found)


def _target_grid(
    size: Sequence[int], affine: np.ndarray, spacing: Sequence[float]
) -> tuple[tuple[int, ...], np.ndarray | None]:
    """Shape and place of the grid that ``Spacingd`` makes, as a matrix into the image's voxels."""
    axes = affine[:3, :3]
    own = np.linalg.norm(axes, axis=0)
    wanted = np.where(np.asarray(spacing) > 0, spacing, own)
    wanted = np.where(np.abs(own - wanted) <= _TOLERANCE, own, wanted)
    # Rotation and stretching apart; shearing is dropped.
    stretch = np.linalg.cholesky(axes.T @ axes).T
    target = axes @ np.linalg.inv(stretch) @ np.diag(np.sign(np.diag(stretch)) * wanted)
    inverse = np.linalg.inv(target)
    ends = np.array(np.meshgrid(*[[0.0, edge - 1.0] for edge in size], indexing="ij"))
    corners = ends.reshape(3, -1)
    there = inverse @ axes @ corners
    shape = tuple(int(edge) for edge in np.round(np.ptp(there, axis=1) + 1))
    lowest = [index for index in range(8) if np.allclose(np.min(there - there[:, [index]], 1), 0.0)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.inv(axes) @ target
    if lowest:
        matrix[:3, 3] = corners[:, lowest[0]]
    else:
        matrix[:3, 3] = np.array(size) / 2 - matrix[:3, :3] @ (np.array(shape) / 2)
    is_same = np.allclose(matrix, np.eye(4), rtol=1e-5, atol=_TOLERANCE) and shape == tuple(size)
    return shape, None if is_same else matrix


def _is_diagonal(matrix: np.ndarray) -> bool:
    """Whether axes of one grid are axes of the other."""
    axes = matrix[:3, :3]
    return bool(np.abs(axes - np.diag(np.diag(axes))).max() < _TINY)


def _grid_positions(
    matrix: np.ndarray, size: Sequence[int], shape: Sequence[int]
) -> list[np.ndarray]:
    """Where the voxels of a grid lie along each axis of another of a size, no further than it."""
    return [
        (np.arange(count) * matrix[axis, axis] + matrix[axis, 3]).clip(0, edge - 1)
        for axis, (count, edge) in enumerate(zip(shape, size, strict=True))
    ]


def _cut(image: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """An image in slabs along its first axis."""
    for at in range(0, image.shape[1], _PLANES):
        yield image[:, at : at + _PLANES]


def _resample_slabs(
    slabs: Iterable[NDArray[np.float32]],
    size: Sequence[int],
    positions: Sequence[np.ndarray],
) -> Iterator[NDArray[np.float32]]:
    """Linear interpolation of an image that comes in slabs along its first axis.

    Args:
        slabs: (K, n, *others), together of a size.
        size: voxels of the image.
        positions: of the wanted voxels along each axis, ascending.
    """
    first, *others = positions
    held: NDArray[np.float32] | None = None
    base = done = 0
    for slab in slabs:
        held = slab if held is None else np.concatenate([held, slab], axis=1)
        end = base + held.shape[1]
        ready = len(first) if end == size[0] else int(np.searchsorted(first, end - 1, "left"))
        for at in range(done, ready, _PLANES):
            part = _interpolate(held, 1, first[at : min(at + _PLANES, ready)] - base)
            for axis, places in enumerate(others, start=2):
                part = _interpolate(part, axis, places)
            yield part
        done = max(done, ready)
        kept = min(int(first[done]) if done < len(first) else end, end)
        held, base = held[:, kept - base :], kept


def _interpolate(array: NDArray[np.float32], axis: int, places: np.ndarray) -> NDArray[np.float32]:
    """Values of an array between its voxels along an axis."""
    last = array.shape[axis] - 1
    low = np.minimum(places.astype(int), last)
    share = (places - low).astype(np.float32).reshape(-1, *[1] * (array.ndim - 1 - axis))
    values = array.take(low, axis)
    if share.any():
        values += share * (array.take(np.minimum(low + 1, last), axis) - values)
    return values


def _resample_sheared(
    channel: NDArray[np.float32], matrix: np.ndarray, shape: Sequence[int]
) -> NDArray[np.float32]:
    """Linear interpolation where axes of one grid are none of the other."""
    from scipy.ndimage import affine_transform  # rarely needed, and slow to import

    return affine_transform(
        channel, matrix[:3, :3], matrix[:3, 3], tuple(shape), np.float32, order=1, mode="nearest"
    )
