from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from monai_xtiny.networks.cost import network_cost, num_parameters_nnunet
from monai_xtiny.networks.dynunet import build_network
from tests.networks.reference import SEVEN_STAGES, plain_conv_unet

# The paper's counts: nnU-Net's network with biases.
PARAMETERS_NNUNET = {8: 20_388, 16: 79_548, 32: 314_220, 512: 33_472_396}


@pytest.mark.parametrize("width", PARAMETERS_NNUNET)
def test_num_parameters_nnunet_is_the_papers_count(width) -> None:
    assert num_parameters_nnunet(SEVEN_STAGES, width) == PARAMETERS_NNUNET[width]


def test_num_parameters_nnunet_of_one_channel_is_the_papers_count() -> None:
    assert num_parameters_nnunet(replace(SEVEN_STAGES, in_channels=1), 8) == 20_244


@pytest.mark.parametrize("width", [2, 16])
def test_num_parameters_nnunet_counts_anisotropic_3d_as_nnunet_builds_it(plan_3d, width) -> None:
    network = plain_conv_unet(plan_3d, width)
    assert num_parameters_nnunet(plan_3d, width) == sum(p.numel() for p in network.parameters())


def test_network_cost_counts_the_multiplications_of_one_pass(plan_2d) -> None:
    # By hand, cap 1: two 3x3 convolutions per stage, transposed 2x2, two 3x3 in the decoder, a 1x1.
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
