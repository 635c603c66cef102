from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch.autograd.functional import jacobian

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.sensitivity import jacobian_sensitivity

SMALL_2D = UNetPlan(
    2, 2, 3, (1, 1), (8, 16), ((3, 3),) * 3, ((1, 1), (2, 2), (2, 2)), (32, 64, 128)
)
SMALL_3D = UNetPlan(
    3, 1, 2, (1, 1, 1), (8, 8, 4), ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    ((1, 1, 1), (2, 2, 1), (2, 2, 2)), (32, 64, 128),
)  # fmt: skip


def oracle(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Norm of the full Jacobian summed over its outputs, one image (1, C, *spatial)."""
    full = jacobian(network.eval(), image)  # (1, K, *spatial, 1, C, *spatial)
    summed = full.flatten(0, image.ndim - 1).sum(0)
    return summed.norm()


@pytest.mark.parametrize("plan", [SMALL_2D, SMALL_3D], ids=["2d", "3d anisotropic"])
def test_jacobian_sensitivity_equals_the_full_jacobian_in_float64(plan) -> None:
    network = build_network(plan, 2, seed=3).double()
    images = torch.randn(
        2, plan.in_channels, *plan.patch_size, dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    expected = torch.stack([oracle(network, image[None]) for image in images])
    torch.testing.assert_close(jacobian_sensitivity(network, images), expected, rtol=1e-9, atol=0)


def test_jacobian_sensitivity_of_a_batch_is_that_of_its_images() -> None:
    network = build_network(SMALL_2D, 4, seed=0)
    images = torch.randn(5, 2, 8, 16, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([jacobian_sensitivity(network, image[None]) for image in images])
    torch.testing.assert_close(jacobian_sensitivity(network, images), alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("factor", [-2.0, 0.5])
def test_jacobian_sensitivity_scales_with_the_last_layer(factor) -> None:
    network = build_network(SMALL_2D, 4, seed=0)
    images = torch.randn(2, 2, 8, 16, generator=torch.Generator().manual_seed(2))
    before = jacobian_sensitivity(network, images)
    with torch.no_grad():
        network.output_block.conv.conv.weight.mul_(factor)
    torch.testing.assert_close(jacobian_sensitivity(network, images), abs(factor) * before)


def state_of(network: nn.Module) -> list:
    """Everything a measurement could disturb."""
    return [
        [(name, module.training) for name, module in network.named_modules()],
        [(name, p.requires_grad, p.grad) for name, p in network.named_parameters()],
        [
            (name, len(m._forward_hooks), len(m._backward_hooks))
            for name, m in network.named_modules()
        ],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


class Failing(nn.Conv2d):
    def forward(self, x):
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_jacobian_sensitivity_leaves_the_network_as_it_was(fails) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    if fails:
        network.append(Failing(3, 3, 1))
    network[1].eval()
    network[0].bias.requires_grad_(False)
    network.register_forward_hook(lambda *_: None)
    images = torch.randn(2, 2, 8, 16)
    before, weights = state_of(network), {k: v.clone() for k, v in network.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            jacobian_sensitivity(network, images)
    else:
        jacobian_sensitivity(network, images)
    assert state_of(network) == before
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not images.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_jacobian_sensitivity_works_where_gradients_are_off(context) -> None:
    network = build_network(SMALL_2D, 2, seed=0)
    images = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(2))
    expected = jacobian_sensitivity(network, images)
    with context():
        assert torch.equal(jacobian_sensitivity(network, images.clone()), expected)


def test_jacobian_sensitivity_ignores_autocast_around_it() -> None:
    network = build_network(SMALL_2D, 2, seed=0)
    images = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(2))
    expected = jacobian_sensitivity(network, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(jacobian_sensitivity(network, images), expected)


def test_jacobian_sensitivity_takes_metatensors_and_returns_plain_ones() -> None:
    network = build_network(SMALL_2D, 2, seed=0)
    images = torch.randn(2, 2, 8, 16, generator=torch.Generator().manual_seed(2))
    values = jacobian_sensitivity(network, MetaTensor(images))
    assert type(values) is torch.Tensor
    assert torch.equal(values, jacobian_sensitivity(network, images))


@pytest.mark.parametrize(
    "images, error, message",
    [
        (torch.zeros(1, 2, 8, 16, dtype=torch.uint8), TypeError, "torch.uint8"),
        ([[1.0]], TypeError, "images is list"),
        (torch.zeros(8, 16), ValueError, r"shape \(8, 16\)"),
        (torch.zeros(0, 2, 8, 16), ValueError, "at least one image"),
    ],
    ids=["integers", "list", "no batch axis", "empty batch"],
)
def test_jacobian_sensitivity_refuses_what_is_no_batch(images, error, message) -> None:
    with pytest.raises(error, match=message):
        jacobian_sensitivity(nn.Conv2d(2, 2, 1), images)


def test_jacobian_sensitivity_refuses_networks_without_one_output() -> None:
    class Two(nn.Conv2d):
        def forward(self, x):
            return [super().forward(x)]

    with pytest.raises(TypeError, match="returns list"):
        jacobian_sensitivity(Two(2, 2, 1), torch.zeros(1, 2, 4, 4))
