"""How unsure a network is of the labels that it gives an image, without knowing the true ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def mean_probabilities(logits: Iterable[torch.Tensor]) -> torch.Tensor:
    """Mean softmax of the members of a committee.

    A voxel whose logits are all exactly 0 was not seen by the network, and is background.

    Args:
        logits: of each member, (K, *spatial).

    Returns:
        Probabilities of the classes, (K, *spatial), float32.

    Raises:
        ValueError: there is no member, or a logit is not finite.
    """
    total, count = torch.zeros(()), 0
    for member in logits:
        if not torch.isfinite(member).all():
            raise ValueError("the network's logits are not finite: train it anew")
        shares = member.float().softmax(dim=0)
        unseen = ~member.any(dim=0)
        shares[:, unseen] = 0
        shares[0, unseen] = 1
        total, count = total + shares, count + 1
    if not count:
        raise ValueError("no logits: a committee needs a member")
    return total / count


def voxel_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of each voxel, ``-sum_k p_k log p_k / log K``: 0 where sure, 1 where all are alike.

    Args:
        probabilities: of the classes, (K, *spatial).

    Returns:
        Shape (*spatial).
    """
    return torch.special.entr(probabilities).sum(dim=0) / math.log(len(probabilities))


def image_uncertainty(probabilities: torch.Tensor) -> float:
    """One minus the Dice that a network expects its labels to have.

    With the labels ``y = argmax_k p``, as one-hot ``y_k``, and sums over voxels::

        u = 1 - mean_k 2 sum p_k y_k / (sum p_k + sum y_k)

    over the foreground classes that are labeled. Numerator and denominator grow with an object
    alike, so that neither large objects nor large images are favored, as sums or means of the
    voxels' entropy favor them. Where nothing is labeled, ``u`` is the largest probability of
    foreground.

    Args:
        probabilities: of the classes, background first, (K, *spatial).

    Returns:
        0 where sure, 1 at most.
    """
    labels = probabilities.argmax(dim=0)
    expected = []
    for index in range(1, len(probabilities)):
        drawn, shares = labels == index, probabilities[index].double()
        volume = int(drawn.sum())
        if volume:
            expected.append(float(2 * shares[drawn].sum() / (shares.sum() + volume)))
    if not expected:
        return float(1 - probabilities[0].min())
    return 1 - sum(expected) / len(expected)
