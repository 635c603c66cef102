"""Tensor mathematics of the alignment: what a narrow network at initialization keeps of an image.

The share of variance that a linear regression explains: Kornblith et al. 2019, *Similarity of
Neural Network Representations Revisited*, arXiv:1905.00414, section 3. Features are matrices of
samples (voxels) by channels, (N, C); arithmetic is float64. No engine, no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from monai_xtiny.networks.features import decoder_features

_TINY = 1e-300
# Below it a feature of a normalized image is constant but for rounding.
_SMALLEST_SPREAD = 1e-6
# Standard deviations of the Gaussians of image features, voxels.
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class ImageFeatures:
    """Simple features of one image, that those of networks are compared with.

    Args:
        voxels: indices of the sampled voxels of the image, flat, shape (N,).
        values: standardized over the voxels, (N, Q), float64.
    """

    voxels: torch.Tensor
    values: torch.Tensor


def sample_voxels(num_voxels: int, num_samples: int, *, seed: int) -> torch.Tensor:
    """Draw voxels of an image without replacement, in ascending order, shape (num_samples,).

    Fewer than ``num_samples`` are all taken. The global generator is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_voxels, generator=generator)[:num_samples].sort().values


def image_features(image: torch.Tensor, voxels: torch.Tensor) -> ImageFeatures:
    """Edges, blobs and texture of an image at some of its voxels, at three scales.

    Of each channel and for each standard deviation ``s`` of ``SCALES``: the difference of Gaussians
    of ``s`` and ``2 s``, the local standard deviation under a Gaussian of ``s``, and the magnitude
    of the Gaussian gradient; nine columns per channel, each of mean 0 and standard deviation 1.

    Args:
        image: shape (C, *spatial).
        voxels: flat indices, shape (N,).
    """
    columns = []
    for channel in image.cpu().numpy().astype(np.float64):
        for sigma in SCALES:
            smooth = ndimage.gaussian_filter(channel, sigma)
            square = ndimage.gaussian_filter(channel**2, sigma)
            columns += [
                smooth - ndimage.gaussian_filter(channel, 2 * sigma),
                np.sqrt(np.maximum(square - smooth**2, 0)),
                ndimage.gaussian_gradient_magnitude(channel, sigma),
            ]
    values = _centered(
        torch.from_numpy(np.stack([column.ravel() for column in columns], axis=1)[voxels.numpy()])
    )
    values = values / values.std(dim=0, correction=0).clamp_min(_SMALLEST_SPREAD)
    return ImageFeatures(voxels, values.to(image.device))


def sampled_features(
    network: nn.Module, images: torch.Tensor, voxels: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Last decoder features at some voxels of each image of a batch, (N, F) float64 each."""
    flat = decoder_features(network, images).flatten(2)
    return [
        item[:, index.to(item.device)].mT.double() for item, index in zip(flat, voxels, strict=True)
    ]


def explained_variance(
    features: torch.Tensor, targets: torch.Tensor, *, ridge: float = 1e-3
) -> torch.Tensor:
    r"""Share of the targets' variance that a ridge regression on features explains.

    .. math:: R^2 = 1 - \frac{\|Y - X W\|_F^2}{\|Y\|_F^2}, \quad
        W = \left(X^T X + \lambda \frac{\mathrm{tr}\, X^T X}{P} I\right)^{-1} X^T Y

    The ridge is Tikhonov's, scaled by the mean variance of the features, so that the share does not
    change with their scale.

    Args:
        features: ``X``, shape (N, P), with N well above P.
        targets: ``Y``, shape (N, Q); each column counts by its variance.
        ridge: the penalty ``lambda``.

    Returns:
        A scalar, at most 1; 0 where either is constant. On a CPU its bits do not follow the number
        of threads.
    """
    with _one_thread():
        x, y = _centered(features), _centered(targets)
        gram, cross = x.mT @ x, x.mT @ y
        penalty = ridge * gram.diagonal().mean() + _TINY
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram + penalty * eye, cross)
        explained = 2 * (weights * cross).sum() - (weights * (gram @ weights)).sum()
        return explained / y.square().sum().clamp_min(_TINY)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One kernel thread: products of several are added up in an order that follows their number."""
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(num_threads)


def _centered(features: torch.Tensor) -> torch.Tensor:
    """Columns of mean 0, in float64."""
    values = features.double()
    return values - values.mean(dim=0, keepdim=True)
