"""The one place where a plan becomes a network: stock ``monai.networks.nets.DynUNet``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch.utils.flop_counter import FlopCounterMode

from monai_xtiny.plan import UNetPlan


@dataclass(frozen=True)
class NetworkCost:
    """Size of one width-capped network.

    Args:
        num_parameters: of the DynUNet, ``parameters()`` only.
        num_parameters_nnunet: of nnU-Net's PlainConvUNet at the same widths (convolutions with
            bias), the count that Kimbowa et al. 2026 report.
        gmacs: multiply-accumulates of one forward pass on one patch, in 1e9.
    """

    num_parameters: int
    num_parameters_nnunet: int
    gmacs: float


def width_ladder(plan: UNetPlan) -> tuple[int, ...]:
    """Width caps to try, widest first: the full network's, halved down to 1.

    Kimbowa et al. 2026 (arXiv:2605.09639); integer division, so 3D gives 320, ..., 10, 5, 2, 1.

    >>> width_ladder(UNetPlan(3, 1, 2, (1, 1, 1), (64, 64, 64), ((3, 3, 3),) * 5,
    ...     ((1, 1, 1),) + ((2, 2, 2),) * 4, (32, 64, 128, 256, 320)))
    (320, 160, 80, 40, 20, 10, 5, 2, 1)
    """
    widths = [plan.features_per_stage[-1]]
    while widths[-1] > 1:
        widths.append(widths[-1] // 2)
    return tuple(widths)


def cap_features(plan: UNetPlan, max_features: int | None = None) -> tuple[int, ...]:
    r"""Features of each stage under a cap.

    .. math:: f_s^{(c)} = \min(c, f_s)

    Args:
        plan: the full network's plan.
        max_features: the cap ``c``; ``None`` leaves the full network.

    Raises:
        ValueError: the cap is not positive.
    """
    if max_features is None:
        return plan.features_per_stage
    if max_features < 1:
        raise ValueError(f"max_features is {max_features}: give a width of at least 1")
    return tuple(min(max_features, features) for features in plan.features_per_stage)


def network_config(plan: UNetPlan, max_features: int | None = None) -> dict[str, Any]:
    """Arguments of ``DynUNet`` for a plan under a cap, in JSON's types."""
    return {
        "spatial_dims": plan.spatial_dims,
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "kernel_size": [list(kernel) for kernel in plan.kernel_size],
        "strides": [list(stride) for stride in plan.strides],
        "upsample_kernel_size": [list(stride) for stride in plan.strides[1:]],
        "filters": list(cap_features(plan, max_features)),
        "norm_name": ["INSTANCE", {"affine": True}],
        "act_name": ["leakyrelu", {"inplace": True, "negative_slope": 0.01}],
        "deep_supervision": False,
        "trans_bias": True,
    }


def build_network(
    plan: UNetPlan,
    max_features: int | None = None,
    *,
    seed: int | None = None,
    device: str | torch.device = "cpu",
) -> DynUNet:
    """Build the width-capped U-Net at nnU-Net's initialisation (He normal, a = 0.01, zero biases).

    DynUNet's convolutions have no bias (a no-op before instance normalisation), and with
    anisotropic kernels its decoder uses the kernel of the deeper level where nnU-Net uses the skip
    level's.

    Args:
        plan: the full network's plan.
        max_features: width cap; ``None`` builds the full network.
        seed: of the initialisation; drawn on the CPU, so every device gets the same weights, and
            the global generator is left as it was. ``None`` draws from the global generator.
        device: where the network is put.

    Returns:
        The network, in training mode as PyTorch makes it; in (B, in_channels, *patch_size), out
        (B, out_channels, *patch_size) logits.

    Raises:
        ValueError: the cap is not positive.
    """
    arguments = network_config(plan, max_features)
    if seed is None:
        return DynUNet(**arguments).to(device)
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        network = DynUNet(**arguments)
    finally:
        torch.default_generator.set_state(state)
    return network.to(device)


def network_cost(plan: UNetPlan, max_features: int | None = None) -> NetworkCost:
    """Count parameters and multiply-accumulates without allocating the network."""
    with torch.device("meta"):
        network = DynUNet(**network_config(plan, max_features)).eval()
        image = torch.empty(1, plan.in_channels, *plan.patch_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
    return NetworkCost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_parameters_nnunet=num_parameters_nnunet(plan, max_features),
        gmacs=counter.get_total_flops() / 2 / 1e9,
    )


def num_parameters_nnunet(plan: UNetPlan, max_features: int | None = None) -> int:
    """Parameters of nnU-Net's PlainConvUNet for the same plan and cap, biases included.

    >>> num_parameters_nnunet(UNetPlan(2, 1, 2, (1, 1), (256, 256), ((3, 3),) * 7,
    ...     ((1, 1),) + ((2, 2),) * 6, (32, 64, 128, 256, 512, 512, 512)), 8)
    20244
    """
    features = cap_features(plan, max_features)

    def stage(inputs: int, outputs: int, kernel: tuple[int, ...]) -> int:
        """Two convolutions with bias, each with an affine instance normalisation."""
        return (inputs + outputs) * outputs * prod(kernel) + 2 * (outputs + 2 * outputs)

    total = 0
    inputs = plan.in_channels
    for outputs, kernel in zip(features, plan.kernel_size, strict=True):
        total += stage(inputs, outputs, kernel)
        inputs = outputs
    for level, outputs in enumerate(features[:-1]):
        total += features[level + 1] * outputs * prod(plan.strides[level + 1]) + outputs
        total += stage(2 * outputs, outputs, plan.kernel_size[level])
        # nnU-Net builds the segmentation layers of deep supervision whether they are used or not.
        total += (outputs + 1) * plan.out_channels
    return total
