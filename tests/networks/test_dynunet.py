from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_xtiny.networks.cost import network_cost, num_parameters_nnunet
from monai_xtiny.networks.dynunet import (
    build_network,
    network_config,
    network_definition,
    network_from_config,
)
from monai_xtiny.networks.ladder import cap_features, width_ladder
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.sensitivity import jacobian_sensitivity

SEVEN_STAGES = UNetPlan(
    2, 3, 2, (1, 1), (256, 256), ((3, 3),) * 7, ((1, 1), *((2, 2),) * 6),
    (32, 64, 128, 256, 512, 512, 512),
)  # fmt: skip
# METHOD: DynUNet with trans_bias, no deep supervision, 3 input channels, 2 classes.
PARAMETERS = {
    1: 392, 2: 1_388, 4: 5_198, 8: 20_090, 16: 78_962, 32: 313_058, 64: 1_108_226,
    128: 3_683_074, 256: 11_567_746, 512: 33_462_402,
}  # fmt: skip
# The paper's counts: nnU-Net's network with biases.
PARAMETERS_NNUNET = {8: 20_388, 16: 79_548, 32: 314_220, 512: 33_472_396}


def plain_conv_unet(plan: UNetPlan, max_features: int) -> nn.Module:
    """nnU-Net's own network for a plan under a cap."""
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="dynamic-network-architectures is not installed",
    )
    convolution, norm = {
        2: (nn.Conv2d, nn.InstanceNorm2d),
        3: (nn.Conv3d, nn.InstanceNorm3d),
    }[plan.spatial_dims]
    stages = len(plan.strides)
    return unet.PlainConvUNet(
        plan.in_channels, stages, cap_features(plan, max_features), convolution,
        plan.kernel_size, plan.strides, [2] * stages, plan.out_channels, [2] * (stages - 1),
        conv_bias=True, norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


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


@pytest.mark.parametrize("width", PARAMETERS_NNUNET)
def test_num_parameters_nnunet_is_the_papers_count(width) -> None:
    assert num_parameters_nnunet(SEVEN_STAGES, width) == PARAMETERS_NNUNET[width]


def test_num_parameters_nnunet_of_one_channel_is_the_papers_count() -> None:
    assert num_parameters_nnunet(replace(SEVEN_STAGES, in_channels=1), 8) == 20_244


@pytest.mark.parametrize("width", [2, 16])
def test_num_parameters_nnunet_counts_anisotropic_3d_as_nnunet_builds_it(plan_3d, width) -> None:
    network = plain_conv_unet(plan_3d, width)
    assert num_parameters_nnunet(plan_3d, width) == sum(p.numel() for p in network.parameters())


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


def test_build_network_starts_at_nnunets_initialisation() -> None:
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


@pytest.mark.parametrize(
    "features, ladder",
    [
        ((32, 64, 128, 256, 512, 512), (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)),
        ((32, 64, 128, 256, 320), (320, 160, 80, 40, 20, 10, 5, 2, 1)),
        ((32, 64, 128), (128, 64, 32, 16, 8, 4, 2, 1)),
    ],
    ids=["2d", "3d", "three stages"],
)
def test_width_ladder_halves_down_to_one(plan_2d, features, ladder) -> None:
    stages = len(features)
    plan = replace(
        plan_2d, features_per_stage=features, patch_size=(64, 64), kernel_size=((3, 3),) * stages,
        strides=((1, 1), *((2, 2),) * (stages - 1)),
    )  # fmt: skip
    assert width_ladder(plan) == ladder


def test_network_cost_counts_the_multiplications_of_one_pass(plan_2d) -> None:
    # By hand, cap 1: two 3x3 convolutions a stage, transposed 2x2, two 3x3 in the decoder, a 1x1.
    voxels = [32 * 48 // 4**level for level in range(4)]
    encoder = sum(2 * 9 * v for v in voxels)
    decoder = sum((4 // 4 + 9 * 2 + 9) * v for v in voxels[:-1])
    expected = encoder + decoder + 2 * voxels[0]
    assert network_cost(plan_2d, 1).gmacs * 1e9 == pytest.approx(expected)


@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_network_cost_equals_counting_in_the_network_itself(plan_2d, plan_3d, dims, width) -> None:
    plan = {"2d": plan_2d, "3d": plan_3d}[dims]
    network = build_network(plan, width).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, plan.in_channels, *plan.patch_size))
    cost = network_cost(plan, width)
    assert cost.gmacs * 2e9 == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert cost.num_parameters == sum(p.numel() for p in network.parameters())


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
