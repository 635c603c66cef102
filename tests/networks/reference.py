"""nnU-Net's own network, and the plan whose numbers are published."""

from __future__ import annotations

import pytest
from torch import nn

from monai_xtiny.networks.ladder import cap_features
from monai_xtiny.plan.unet_plan import UNetPlan

SEVEN_STAGES = UNetPlan(
    2, 3, 2, (1, 1), (256, 256), ((3, 3),) * 7, ((1, 1), *((2, 2),) * 6),
    (32, 64, 128, 256, 512, 512, 512),
)  # fmt: skip


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
