from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import nn

from monai_xtiny.bundled.nnunet_windows import (
    NnunetInferer,
    find_windows,
    window_starts,
    window_weights,
)


def inferer(**options) -> NnunetInferer:
    """An inferer of images that need no preparation."""
    defaults = {"patch_size": (8, 8, 8), "network_axes": (2, 1, 0)}
    return NnunetInferer(
        lambda image: (image.as_subclass(torch.Tensor), None),
        lambda logits, _: logits,
        **{**defaults, **options},
    )


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to half precision, but for the corners of windows, whose weights have few digits."""
    edge = (..., *[slice(2, -2)] * 2)
    assert found.dtype == torch.half
    assert found.shape == expected.shape
    assert torch.allclose(found.float()[edge], expected[edge].float(), atol=1e-2)


@pytest.mark.parametrize(
    ("size", "patch", "starts"),
    [(110, 64, (0, 23, 46)), (64, 64, (0,)), (65, 64, (0, 1)), (90, 44, (0, 15, 31, 46))],
)
def test_window_starts_are_evenly_spread(size, patch, starts) -> None:
    assert window_starts(size, patch) == starts


def test_find_windows_cover_every_voxel() -> None:
    for shape, patch in (((13, 9, 21), (8, 9, 8)), ((3, 13, 21), (8, 8))):
        count = np.zeros(shape, int)
        for window in find_windows(shape, patch):
            assert count[window].shape == patch
            count[window] += 1
        assert count.min() == 1


def test_window_weights_are_a_gaussian_in_half_precision() -> None:
    weights = window_weights((16, 24))
    point = np.zeros((16, 24))
    point[8, 12] = 1
    expected = ndimage.gaussian_filter(point, (2, 3), mode="constant")
    assert weights.dtype == torch.half
    assert float(weights.max()) == 10
    assert np.allclose(weights.numpy(), 10 * expected / expected.max(), atol=5e-3)
    assert float(window_weights((512, 8)).min()) > 0


def test_predict_of_a_pointwise_network_is_the_network() -> None:
    network = nn.Conv3d(1, 3, 1)
    image = torch.rand(1, 7, 20, 11)  # padded along the first axis
    with torch.inference_mode():
        found, expected = inferer().predict(image, network), network(image[None])[0]
    assert_close(found, expected)


def test_predict_turns_the_axes_for_the_network() -> None:
    there = (2, 0, 1)
    weight = torch.rand(2, 1, 3, 3, 3)
    back = [int(axis) + 2 for axis in np.argsort(there)]
    turned = weight.permute(0, 1, *(axis + 2 for axis in there))
    image = torch.rand(1, 16, 12, 8)

    def network(kernel):
        return lambda window: nn.functional.conv3d(window, kernel, padding=1)

    plain = inferer(network_axes=(0, 1, 2)).predict(image, network(weight))
    found = inferer(network_axes=there).predict(image, network(turned))
    assert back == [3, 4, 2]
    assert_close(found, plain)


def test_predict_goes_through_the_slices_of_a_volume() -> None:
    network = nn.Conv2d(1, 2, 1)
    image = torch.rand(1, 5, 9, 12)
    plain = inferer(patch_size=(8, 8), network_axes=(1, 0))
    with torch.inference_mode():
        found = plain.predict(image, network)
        expected = network(image.transpose(0, 1)).transpose(0, 1)
    assert_close(found, expected)


def test_predict_averages_over_all_flips() -> None:
    weight = torch.rand(2, 1, 3, 3, 3)

    def network(window):
        return nn.functional.conv3d(window, weight, padding=1)

    image = torch.rand(1, 8, 8, 8)
    flips = [some for n in range(3) for some in itertools.combinations((2, 4), n)]
    expected = sum(network(image[None].flip(some)).flip(some) for some in flips) / 4
    # Of MONAI's axes 0 and 2: nnU-Net's 2 and 0.
    found = inferer(network_axes=(0, 1, 2), mirror_axes=(0, 2)).predict(image, network)
    assert len(flips) == 4
    assert_close(found[:, 2:-2], expected[0][:, 2:-2])


def test_call_keeps_the_metadata_of_the_images() -> None:
    image = MetaTensor(torch.rand(2, 1, 8, 8, 8), meta={"filename_or_obj": ["a", "b"]})
    found = inferer()(image, nn.Conv3d(1, 2, 1))
    assert found.shape == (2, 2, 8, 8, 8)
    assert found.meta["filename_or_obj"] == ["a", "b"]


def test_inferer_refuses_axes_that_there_are_none_of() -> None:
    with pytest.raises(ValueError, match=r"mirror_axes is \[3\]: give some of \[0, 1, 2\]"):
        inferer(mirror_axes=(3,))


def test_predict_refuses_what_float16_cannot_hold() -> None:
    with pytest.raises(ValueError, match="beyond what float16 holds"):
        inferer().predict(torch.rand(1, 8, 8, 8) + 1, lambda window: window * 1e6)


def test_nnunet_inferer_refuses_a_volume_without_slices() -> None:
    flat = inferer(patch_size=(8, 8), network_axes=(1, 0))
    with pytest.raises(ValueError, match="has no window"):
        flat.predict(torch.zeros(1, 0, 8, 8), nn.Identity())
