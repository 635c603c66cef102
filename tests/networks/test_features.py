from __future__ import annotations

import pytest
import torch

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.features import decoder_features, pooled_features


def test_decoder_features_are_what_the_head_sees_and_leave_the_network(plan_3d) -> None:
    network = build_network(plan_3d, 4, seed=0)
    network.upsamples.eval()
    images = torch.randn(2, plan_3d.in_channels, *plan_3d.patch_size)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    found = decoder_features(network, images)
    assert found.shape == (2, 4, *plan_3d.patch_size)
    assert not found.requires_grad
    torch.testing.assert_close(network.output_block(found), network(images))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_decoder_features_leave_the_modes_after_an_error(plan_2d) -> None:
    network = build_network(plan_2d, 2, seed=0)
    with pytest.raises(RuntimeError, match="channel"):
        decoder_features(network, torch.zeros(1, 3, *plan_2d.patch_size))
    assert all(module.training for module in network.modules())


def test_decoder_features_refuses_other_networks() -> None:
    with pytest.raises(TypeError, match="the network is Conv2d, whose last decoder stage"):
        decoder_features(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4))


def test_pooled_features_collect_a_row_per_image_and_pass_and_leave_the_network(plan_2d) -> None:
    network = build_network(plan_2d, 4, seed=0).eval()
    images = torch.randn(3, 1, *plan_2d.patch_size)
    with torch.no_grad():
        expected = network(images)
        with pooled_features(network) as pooled:
            assert torch.equal(network(images), expected)
            network(images[1:])
        network(images)
    assert not any(module._forward_hooks for module in network.modules())
    # Two of four stages, of four features each.
    assert [tuple(part.shape) for part in pooled] == [(3, 8), (2, 8)]
    torch.testing.assert_close(pooled[0][1:], pooled[1])
    assert not torch.allclose(pooled[0][0], pooled[0][1])


def test_pooled_features_refuses_other_networks() -> None:
    with (
        pytest.raises(TypeError, match="the network is Conv2d, whose encoder"),
        pooled_features(torch.nn.Conv2d(1, 1, 1)),
    ):
        pass
