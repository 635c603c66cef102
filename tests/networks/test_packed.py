from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.features import decoder_features
from monai_xtiny.networks.packed import CHANNELS_LAST, PackedNetwork, _NormalizeInPlace
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.sensitivity import jacobian_sensitivity

PLANS = {
    "2d": UNetPlan(2, 2, 3, (1, 1), (64, 128), ((3, 3),) * 4, ((1, 1), (2, 2), (2, 2), (2, 1)),
                   (8, 16, 16, 16)),
    "3d": UNetPlan(3, 1, 2, (1, 1, 1), (16, 16, 24), ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
                   ((1, 1, 1), (1, 2, 2), (2, 2, 2)), (8, 16, 16)),
}  # fmt: skip


def _images(plan: UNetPlan, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (count, plan.in_channels, *plan.patch_size)
    return torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("num_images", [3, 4], ids=["full", "filled_up"])
@pytest.mark.parametrize("width", [8, 1])
def test_packed_network_is_the_network_alone_in_float64(name, num_images, width) -> None:
    plan = PLANS[name]
    images = _images(plan)
    network = build_network(plan, width, seed=1).double().eval()
    packed = PackedNetwork(plan, width, seed=1, num_images=num_images).double().eval()
    with torch.no_grad():
        torch.testing.assert_close(packed(images), network(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(decoder_features(packed, images), decoder_features(network, images),
                               rtol=1e-9, atol=1e-9)  # fmt: skip
    for count in (1, 3):
        torch.testing.assert_close(
            jacobian_sensitivity(packed, images[:count]),
            jacobian_sensitivity(network, images[:count]),
            rtol=1e-9,
            atol=0,
        )


def test_packed_network_leaves_images_and_generator_alone() -> None:
    plan = PLANS["2d"]
    images = _images(plan).float()
    before, state = images.clone(), torch.get_rng_state()
    packed = PackedNetwork(plan, 4, seed=1, num_images=3)
    assert torch.equal(jacobian_sensitivity(packed, images), jacobian_sensitivity(packed, images))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_packed_network_refuses_more_images_than_it_takes() -> None:
    plan = PLANS["2d"]
    packed = PackedNetwork(plan, 4, seed=1, num_images=2)
    with pytest.raises(ValueError, match="3 images: this network takes 2"):
        packed(_images(plan).float())


@pytest.mark.parametrize("shape", [(1, 3, 80, 96), (1, 2, 20, 16, 24)], ids=["2d", "3d"])
def test_normalize_in_place_is_instance_norm_and_leaky_relu_with_its_gradient(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    inputs = values.clone().requires_grad_(True)
    expected = nn.functional.leaky_relu(nn.functional.instance_norm(inputs, eps=1e-5), 0.01)
    (slope,) = torch.autograd.grad((expected * weights).sum(), inputs)
    other = values.clone().requires_grad_(True)
    kept = (2 * other).contiguous(memory_format=CHANNELS_LAST[len(shape) - 2])
    found = _NormalizeInPlace.apply(kept, 4e-5, 0.01)
    assert found.data_ptr() == kept.data_ptr()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (other_slope,) = torch.autograd.grad((found * weights).sum(), other)
    torch.testing.assert_close(other_slope, slope, rtol=1e-9, atol=1e-9)


def test_normalize_in_place_is_exact_where_adding_up_in_order_is_not() -> None:
    # Mostly one gray value, as dark microscopy is: a sum of 262,144 such values loses digits.
    generator = torch.Generator().manual_seed(0)
    image = torch.full((1, 16, 512, 512), -0.3171)
    image[..., :64, :64] += 10 * torch.rand(1, 16, 64, 64, generator=generator)
    image = image.contiguous(memory_format=torch.channels_last)
    exact = nn.functional.leaky_relu(nn.functional.instance_norm(image.double()), 0.01)
    in_order = nn.functional.batch_norm(image, None, None, training=True)
    assert (nn.functional.leaky_relu(in_order, 0.01) - exact).abs().max() > 1e-3
    found = _NormalizeInPlace.apply(image.clone(), 1e-5, 0.01)
    assert (found - exact).abs().max() < 5e-5
