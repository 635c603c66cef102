from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.features import decoder_features
from monai_xtiny.scores.alignment import (
    explained_variance,
    image_features,
    sample_voxels,
    sampled_features,
)


def features(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def test_explained_variance_equals_ridge_by_least_squares() -> None:
    x, y = features(50, 4), features(50, 3, seed=1) + features(50, 4) @ features(4, 3, seed=2)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    penalty = 0.1 * (x.mT @ x).diagonal().mean()
    # Ridge is least squares on rows added below.
    stacked = torch.cat([x, penalty.sqrt() * torch.eye(4, dtype=torch.float64)])
    target = torch.cat([y, torch.zeros(4, 3, dtype=torch.float64)])
    weights = torch.linalg.lstsq(stacked, target).solution
    expected = 1 - (y - x @ weights).square().sum() / y.square().sum()
    torch.testing.assert_close(explained_variance(x, y, ridge=0.1), expected)


def test_explained_variance_is_one_of_a_linear_image_and_grows_with_features() -> None:
    x = features(50, 6)
    y = x @ features(6, 3, seed=1)
    assert float(explained_variance(x, y, ridge=1e-9)) == pytest.approx(1)
    shares = [float(explained_variance(x[:, :count], y, ridge=1e-9)) for count in range(1, 7)]
    assert shares == sorted(shares)
    assert float(explained_variance(torch.ones(50, 2), y)) == 0


def test_sampled_features_of_a_batch_equal_those_of_single_images(plan_2d, sample_2d) -> None:
    network = build_network(plan_2d, 8, seed=0)
    images = torch.stack(sample_2d.images)
    voxels = [sample_voxels(32 * 48, 100, seed=index) for index in range(3)]
    batch = sampled_features(network, images, voxels)
    for index, item in enumerate(batch):
        (alone,) = sampled_features(network, images[index : index + 1], [voxels[index]])
        torch.testing.assert_close(item, alone, rtol=1e-4, atol=1e-5)
    flat = decoder_features(network, images).flatten(2)
    np.testing.assert_allclose(batch[1], flat[1][:, voxels[1]].T, rtol=1e-6)


def test_sample_voxels_are_distinct_sorted_seeded_and_leave_the_generator() -> None:
    before = torch.get_rng_state()
    first = sample_voxels(1000, 64, seed=3)
    assert torch.equal(first, sample_voxels(1000, 64, seed=3))
    assert not torch.equal(first, sample_voxels(1000, 64, seed=4))
    assert len(first.unique()) == 64
    assert torch.equal(first, first.sort().values)
    assert torch.equal(sample_voxels(10, 64, seed=0), torch.arange(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_image_features_are_those_of_the_whole_image_standardized_at_the_voxels() -> None:
    image = features(24 * 20, 1).reshape(1, 24, 20).float()
    every = torch.arange(24 * 20)
    found = image_features(image, every)
    assert found.values.shape == (480, 9)
    torch.testing.assert_close(found.values.mean(dim=0), torch.zeros(9, dtype=torch.float64))
    torch.testing.assert_close(
        found.values.std(dim=0, correction=0), torch.ones(9, dtype=torch.float64)
    )
    some = every[::7]
    part = image_features(image, some)
    # Standardised over other voxels, the columns agree but for scale and shift.
    for whole, piece in zip(found.values[some].T, part.values.T, strict=True):
        assert abs(np.corrcoef(whole, piece)[0, 1]) == pytest.approx(1)


def test_image_features_see_edges_blobs_and_texture() -> None:
    image = torch.zeros(1, 32, 32)
    image[:, :, 16:] = 1  # an edge
    gradient = image_features(image, torch.arange(1024)).values[:, 2].reshape(32, 32)
    assert set(gradient.argmax(dim=1).tolist()) <= {15, 16}
    noise = torch.zeros(1, 32, 32)
    noise[:, :, 16:] = features(512, 1).reshape(32, 16).float()  # texture on the right
    spread = image_features(noise, torch.arange(1024)).values[:, 1].reshape(32, 32)
    assert spread[:, 20:].mean() > spread[:, :12].mean() + 1


def test_image_features_of_a_constant_image_are_zero_and_of_3d_have_nine_columns_a_channel() -> (
    None
):
    constant = image_features(torch.full((1, 16, 16), 3.3), torch.arange(256))
    assert float(constant.values.abs().max()) == 0
    volume = image_features(features(8**3, 2).T.reshape(2, 8, 8, 8), torch.arange(100))
    assert volume.values.shape == (100, 18)


@pytest.mark.parametrize("change", [lambda x: 3 * x, lambda x: x + 5, lambda x: x.flip(1)])
def test_explained_variance_does_not_change_with(change) -> None:
    x, y = features(50, 4), features(50, 3, seed=1)
    torch.testing.assert_close(explained_variance(change(x), y), explained_variance(x, y))
