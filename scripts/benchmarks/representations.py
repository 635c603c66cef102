"""Statistics of representations that the benchmark of selection compares, and no rule uses.

Features are matrices of samples (voxels) by channels, (N, C); arithmetic is float64.
"""

from __future__ import annotations

import torch

_TINY = 1e-300


def linear_cka(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    r"""Linear centered kernel alignment (CKA) of two sets of features of the same voxels.

    .. math:: \mathrm{CKA}(X, Y) = \frac{\|X^T Y\|_F^2}{\|X^T X\|_F \, \|Y^T Y\|_F}

    with columns centered over the voxels (Kornblith et al. 2019, arXiv:1905.00414). It is 1 for
    features that agree up to rotation and scale, and near 0 for unrelated ones.

    Args:
        features: ``X``, shape (N, P).
        others: ``Y``, shape (N, Q); those of several networks side by side, for example.

    Returns:
        A scalar in [0, 1], float64; 0 where a set of features is constant.
    """
    x, y = _centered(features), _centered(others)
    norms = torch.linalg.matrix_norm(x.mT @ x) * torch.linalg.matrix_norm(y.mT @ y)
    return (x.mT @ y).square().sum() / norms.clamp_min(_TINY)


def effective_rank(features: torch.Tensor) -> torch.Tensor:
    r"""Number of directions that features use: the participation ratio of their covariance.

    .. math:: \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2}

    Args:
        features: shape (N, P).

    Returns:
        A scalar from 1 to P; 0 where the features are constant.
    """
    x = _centered(features)
    gram = x.mT @ x
    return gram.trace() ** 2 / gram.square().sum().clamp_min(_TINY)


def _centered(features: torch.Tensor) -> torch.Tensor:
    """Columns of mean 0, in float64."""
    values = features.double()
    return values - values.mean(dim=0, keepdim=True)
