"""nnU-Net's inference with windows, without nnU-Net: positions, weights, flips, and float16.

A bundle imported from nnU-Net carries this file as ``scripts/nnunet_windows.py``. Axis order is
nnU-Net's after its transposition, C, *spatial; the network alone is MONAI's, (x, y[, z]).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_dst_type
from scipy import ndimage

# The weights of a window fall off with an eighth of its edges, from 10 in its middle.
_SIGMA, _PEAK = 1 / 8, 10.0


class NnunetInferer:
    """An inferer that does with an image what nnU-Net does: as it was read in, logits out.

    Args:
        prepare: from (C, x, y[, z]) to (C, *spatial) in nnU-Net's order, and what ``restore``
            needs to know of it.
        restore: from logits (K, *spatial) to (K, x, y[, z]) on the grid of the image.
        patch_size: of the network, (x, y[, z]).
        network_axes: place of each of these axes in nnU-Net's order.
        mirror_axes: those of ``patch_size`` that are flipped, in all combinations, whose logits are
            averaged.
        overlap: of neighboring windows, as a share of the patch; nnU-Net's step is 1 - overlap.
    """

    def __init__(
        self,
        prepare: Callable[[Any], tuple[torch.Tensor, Any]],
        restore: Callable[[torch.Tensor, Any], torch.Tensor],
        *,
        patch_size: Sequence[int],
        network_axes: Sequence[int],
        mirror_axes: Sequence[int] | None = None,
        overlap: float = 0.5,
    ) -> None:
        axes = tuple(mirror_axes or ())
        if not set(axes) <= set(range(len(patch_size))) or len(set(axes)) < len(axes):
            raise ValueError(
                f"mirror_axes is {list(axes)}: give some of {list(range(len(patch_size)))}"
            )
        self.prepare, self.restore = prepare, restore
        self.network_axes, self.overlap = tuple(network_axes), overlap
        # From here on in nnU-Net's order, in which float16 adds up.
        self.patch_size = tuple(patch_size[int(axis)] for axis in np.argsort(network_axes))
        self.mirror_axes = tuple(sorted(network_axes[axis] for axis in axes))

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *_: Any) -> torch.Tensor:
        """Logits (B, K, x, y[, z]) of images (B, C, x, y[, z]), each as its file has it."""
        found = []
        for image in inputs:
            data, placement = self.prepare(image)
            logits = self.predict(data.to(inputs.device), network)
            found.append(self.restore(logits.cpu(), placement))
        # With the metadata of the images, as MONAI's inferers do.
        return convert_to_dst_type(torch.stack(found), inputs, dtype=found[0].dtype)[0]

    def predict(self, image: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        """Logits (K, *spatial) in float16 of a preprocessed image (C, *spatial)."""
        spatial = image.shape[1:]
        padding = _padding(spatial, self.patch_size)
        padded = torch.nn.functional.pad(image, [edge for pair in padding[::-1] for edge in pair])
        weights = window_weights(self.patch_size).to(image.device)
        total, sums = None, torch.zeros(padded.shape[1:], dtype=torch.half, device=image.device)
        for window in find_windows(padded.shape[1:], self.patch_size, self.overlap):
            logits = self._average(padded[_in_all_channels(window)][None], network)[0]
            if total is None:
                shape = (len(logits), *padded.shape[1:])
                total = torch.zeros(shape, dtype=torch.half, device=image.device)
            total[_in_all_channels(window)] += logits * weights
            sums[window] += weights
        if total is None:
            raise ValueError(f"an image of {list(spatial)} voxels has no window: leave it out")
        found = total / sums
        if not torch.isfinite(found).all():
            raise ValueError("the logits are beyond what float16 holds: normalize the image")
        inside = (slice(low, low + size) for (low, _), size in zip(padding, spatial, strict=True))
        return found[_in_all_channels(inside)]

    def _average(self, window: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        """Logits (1, K, *spatial) of a window, averaged over its flips."""
        logits = self._run(window, network)
        axes = [axis + 2 for axis in self.mirror_axes]
        flips = [some for count in range(1, len(axes) + 1) for some in combinations(axes, count)]
        for some in flips:
            logits = logits + torch.flip(self._run(torch.flip(window, some), network), some)
        return logits / (len(flips) + 1)

    def _run(self, window: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        """Logits of a window, with the axes turned for the network and back."""
        there = [axis + 2 for axis in self.network_axes]
        back = [axis + 2 for axis in np.argsort(self.network_axes)]
        logits = network(window.permute(0, 1, *there).contiguous())
        return logits.as_subclass(torch.Tensor).float().permute(0, 1, *back)


def find_windows(
    shape: Sequence[int], patch_size: Sequence[int], overlap: float = 0.5
) -> Iterator[tuple[Any, ...]]:
    """The windows of an image, in nnU-Net's order; a 2D patch goes through the slices.

    Args:
        shape: of the image, at least the patch.
        patch_size: of the network.
        overlap: share of the patch that neighbors share at least.

    Returns:
        Indices of (*spatial): a slice for each axis of the patch, and before, of a slice of a
        volume, its number.
    """
    outer = shape[: len(shape) - len(patch_size)]
    places: list[list[Any]] = [list(range(count)) for count in outer]
    for size, patch in zip(shape[len(outer) :], patch_size, strict=True):
        places.append([slice(at, at + patch) for at in window_starts(size, patch, overlap)])
    return product(*places)


def window_starts(size: int, patch: int, overlap: float = 0.5) -> tuple[int, ...]:
    """Where windows begin along an axis: evenly spread, the last at the end.

    >>> window_starts(110, 64)
    (0, 23, 46)
    >>> window_starts(64, 64)
    (0,)
    """
    count = math.ceil((size - patch) / (patch * (1 - overlap))) + 1
    step = (size - patch) / max(count - 1, 1)
    return tuple(round(step * index) for index in range(count))


def window_weights(patch_size: Sequence[int]) -> torch.Tensor:
    """Weights of the voxels of a window, in float16: a Gaussian, and nowhere 0."""
    weights = np.zeros(tuple(patch_size))
    weights[tuple(size // 2 for size in patch_size)] = 1
    sigmas = [size * _SIGMA for size in patch_size]
    weights = ndimage.gaussian_filter(weights, sigmas, mode="constant")
    found = torch.from_numpy(weights / (weights.max() / _PEAK)).half()
    found[found == 0] = found[found > 0].min()
    return found


def _padding(shape: Sequence[int], patch_size: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add before and after, so that the patch fits."""
    wanted = [0] * (len(shape) - len(patch_size)) + list(patch_size)
    lacking = [max(edge - size, 0) for edge, size in zip(wanted, shape, strict=True)]
    return [(count // 2, count - count // 2) for count in lacking]


def _in_all_channels(box: Iterable[Any]) -> tuple[Any, ...]:
    """The index of a box in all channels."""
    return (slice(None), *box)
