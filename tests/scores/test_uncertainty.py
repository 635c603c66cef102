from __future__ import annotations

import math

import pytest
import torch

from monai_xtiny.scores.uncertainty import (
    image_uncertainty,
    mean_probabilities,
    voxel_entropy,
)


def of_foreground(share: torch.Tensor) -> torch.Tensor:
    """Probabilities (2, *spatial) of a background and a foreground."""
    return torch.stack([1 - share, share])


def object_in_image(
    edge: int, size: int, inside: float = 0.8, outside: float = 0.0
) -> torch.Tensor:
    """A square object of which a network is as sure everywhere."""
    share = torch.full((size, size), outside, dtype=torch.float64)
    share[:edge, :edge] = inside
    return of_foreground(share)


def test_mean_probabilities_are_the_mean_of_softmaxes_not_of_logits() -> None:
    logits = torch.tensor([[2.0, -4.0]]), torch.tensor([[0.0, 1.0]])
    first, second = (torch.cat([member, torch.ones(1, 2)]) for member in logits)
    expected = (first.softmax(0) + second.softmax(0)) / 2
    torch.testing.assert_close(mean_probabilities([first, second]), expected)


def test_mean_probabilities_take_what_was_not_seen_for_background() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    found = mean_probabilities([logits])
    assert found[:, 0].tolist() == [1.0, 0.0]
    assert 0.9 < found[1, 1] < 1


def test_mean_probabilities_refuse_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        mean_probabilities([torch.tensor([[math.nan], [0.0]])])
    with pytest.raises(ValueError, match="needs a member"):
        mean_probabilities([])


def test_voxel_entropy_is_0_where_sure_and_1_where_all_are_alike() -> None:
    shares = torch.tensor([[1.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.5], [0.0, 1 / 3, 0.0]])
    expected = torch.tensor([0.0, 1.0, math.log(2) / math.log(3)])
    torch.testing.assert_close(voxel_entropy(shares), expected)


def test_image_uncertainty_is_one_minus_the_dice_of_labels_and_probabilities() -> None:
    share = torch.rand(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = (share > 0.5).double()
    dice = 2 * (share * drawn).sum() / (share.sum() + drawn.sum())
    assert image_uncertainty(of_foreground(share)) == pytest.approx(1 - float(dice))


def test_image_uncertainty_favors_neither_large_objects_nor_large_images() -> None:
    small = object_in_image(4, 20)
    entropies = []
    for other in (object_in_image(16, 20), object_in_image(4, 80)):
        assert image_uncertainty(other) == pytest.approx(image_uncertainty(small))
        entropies.append(float(voxel_entropy(other).mean() / voxel_entropy(small).mean()))
    # The mean entropy of an image, by which it would be 16 times as much and a 16th.
    assert entropies == pytest.approx([16, 1 / 16])


def test_image_uncertainty_is_0_where_sure_and_rises_with_doubt() -> None:
    assert image_uncertainty(object_in_image(4, 20, 1.0)) == 0
    found = [image_uncertainty(object_in_image(4, 20, inside)) for inside in (0.9, 0.7, 0.51)]
    assert found == sorted(found)


def test_image_uncertainty_of_an_image_without_labels_is_what_was_nearly_labeled() -> None:
    assert image_uncertainty(object_in_image(4, 20, 0.3)) == pytest.approx(0.3)
    assert image_uncertainty(object_in_image(4, 20, 0.0)) == 0


def test_image_uncertainty_is_the_mean_of_the_classes_that_are_labeled() -> None:
    shares = torch.tensor([[0.0, 0.1, 0.1, 1.0], [1.0, 0.0, 0.9, 0.0], [0.0, 0.9, 0.0, 0.0]])
    shares = torch.cat([shares, torch.zeros(1, 4)]).double()  # a class that is nowhere
    dice = (2 * 1.9 / (1.9 + 2) + 2 * 0.9 / (0.9 + 1)) / 2
    assert image_uncertainty(shares) == pytest.approx(1 - dice, abs=1e-6)
