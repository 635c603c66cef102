from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.dynunet import (
    build_network,
    network_config,
    network_definition,
    network_from_config,
)
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.sensitivity import jacobian_sensitivity
from tests.networks.reference import SEVEN_STAGES, plain_conv_unet

# METHOD: DynUNet with trans_bias, no deep supervision, 3 input channels, 2 classes.
PARAMETERS = {
    1: 392, 2: 1_388, 4: 5_198, 8: 20_090, 16: 78_962, 32: 313_058, 64: 1_108_226,
    128: 3_683_074, 256: 11_567_746, 512: 33_462_402,
}  # fmt: skip


def copy_block(source: nn.Module, target: nn.Module) -> None:
    """Two convolutions and two norms from nnU-Net's stack to DynUNet's block."""
    for index, (convolution, norm) in enumerate([("conv1", "norm1"), ("conv2", "norm2")]):
        getattr(target, convolution).conv.load_state_dict(
            {"weight": source.convs[index].conv.weight}
        )
        getattr(target, norm).load_state_dict(source.convs[index].norm.state_dict())


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """PlainConvUNet's weights into a DynUNet; convolution biases are no-ops before the norm."""
    encoder = [target.input_block, *target.downsamples, target.bottleneck]
    for stage, block in zip(source.encoder.stages, encoder, strict=True):
        copy_block(stage[0], block)
    for stage, up, block in zip(
        source.decoder.stages, source.decoder.transpconvs, target.upsamples, strict=True
    ):
        block.transp_conv.conv.load_state_dict(up.state_dict())
        copy_block(stage, block.conv_block)
    target.output_block.conv.conv.load_state_dict(source.decoder.seg_layers[-1].state_dict())


@pytest.mark.parametrize("width", PARAMETERS)
def test_build_network_has_exactly_the_published_parameters(width) -> None:
    assert network_cost(SEVEN_STAGES, width).num_parameters == PARAMETERS[width]
    if width <= 64:
        network = build_network(SEVEN_STAGES, width)
        assert sum(p.numel() for p in network.parameters()) == PARAMETERS[width]


@pytest.mark.parametrize("width", [2, 8])
@pytest.mark.parametrize("dims", [2, 3])
def test_build_network_computes_what_nnunet_computes(dims, width) -> None:
    stages = 4
    plan = UNetPlan(
        dims, 1, 3, (1,) * dims, (32,) * dims, ((3,) * dims,) * stages,
        ((1,) * dims, *((2,) * dims,) * (stages - 1)), (32, 64, 128, 256),
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = plain_conv_unet(plan, width).double()
    theirs.apply(theirs.initialize)
    for parameter in theirs.parameters():  # biases that nnU-Net starts at 0 shall matter here
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    ours = build_network(plan, width, seed=0).double()
    copy_weights(theirs, ours)
    images = torch.randn(2, 1, *plan.patch_size, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        jacobian_sensitivity(ours, images), jacobian_sensitivity(theirs, images)
    )


def test_build_network_starts_at_nnunets_initialization() -> None:
    network = build_network(SEVEN_STAGES, 64, seed=0)
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert module.bias is None or not module.bias.any(), name
            fan_in = module.weight[0].numel()
            gain = (2 / (1 + 0.01**2)) ** 0.5
            assert module.weight.mean().abs() < 0.2 * gain / fan_in**0.5, name
            if module.weight.numel() > 2000:
                expected = gain / fan_in**0.5
                assert float(module.weight.std().detach()) == pytest.approx(expected, rel=0.1), name


def test_build_network_repeats_with_its_seed_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_network(SEVEN_STAGES, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    differing = zip(first.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in differing)


def test_build_network_without_seed_draws_from_the_global_generator() -> None:
    torch.manual_seed(7)
    first = build_network(SEVEN_STAGES, 2)
    torch.manual_seed(7)
    second = build_network(SEVEN_STAGES, 2)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_build_network_restores_the_generator_after_an_error(plan_2d) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="max_features is 0"):
        build_network(plan_2d, 0, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_build_network_gives_logits_of_the_input_size(plan_3d) -> None:
    output = build_network(plan_3d, 4, seed=0)(torch.zeros(1, 2, *plan_3d.patch_size))
    assert output.shape == (1, 3, *plan_3d.patch_size)


@pytest.mark.parametrize("state", [network_config, network_definition])
def test_network_from_config_builds_the_network_that_was_stated(plan_3d, state) -> None:
    network = build_network(plan_3d, 4, seed=0)
    other = network_from_config(state(plan_3d, 4))
    other.load_state_dict(network.state_dict())
    images = torch.randn(1, plan_3d.in_channels, *plan_3d.patch_size)
    assert torch.equal(other.eval()(images), network.eval()(images))


def test_network_definition_is_what_monai_instantiates(plan_2d) -> None:
    parser = ConfigParser({"network_def": network_definition(plan_2d, 8)})
    network = parser.get_parsed_content("network_def")
    assert type(network) is type(build_network(plan_2d, 8))
    assert [item.shape for item in network.parameters()] == [
        item.shape for item in build_network(plan_2d, 8).parameters()
    ]


def test_build_network_refuses_a_giant_before_it_takes_memory(plan_3d) -> None:
    giant = replace(plan_3d, features_per_stage=(4096,) * 3)
    with pytest.raises(ValueError, match=r"parameters, more than 1,000,000,000"):
        build_network(giant)
    assert build_network(giant, 1).in_channels == giant.in_channels
