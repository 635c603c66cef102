"""The one place where a plan becomes a network: stock ``monai.networks.nets.DynUNet``."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from monai.networks.nets import DynUNet

from monai_xtiny.plan import UNetPlan

# Weights are drawn from the global generator, one network at a time.
_GENERATOR = threading.Lock()


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
    with _GENERATOR:
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(seed)
            network = DynUNet(**arguments)
        finally:
            torch.default_generator.set_state(state)
    return network.to(device)


def network_cost(plan: UNetPlan, max_features: int | None = None) -> NetworkCost:
    """Count parameters and multiply-accumulates from the plan, without building the network.

    Convolutions only are counted as multiply-accumulates, as ``torch.utils.flop_counter`` does.

    Args:
        plan: of the full network.
        max_features: width cap; ``None`` counts the full network.

    >>> network_cost(UNetPlan(2, 1, 2, (1, 1), (256, 256), ((3, 3),) * 7,
    ...     ((1, 1),) + ((2, 2),) * 6, (32, 64, 128, 256, 512, 512, 512)), 8).num_parameters
    19946
    """
    layers = _convolutions(plan, cap_features(plan, max_features))
    return NetworkCost(
        num_parameters=sum(layer.num_weights + layer.num_other for layer in layers),
        num_parameters_nnunet=num_parameters_nnunet(plan, max_features),
        gmacs=sum(layer.num_macs for layer in layers) / 1e9,
    )


def num_activations(plan: UNetPlan, max_features: int | None = None) -> int:
    """Values that the convolutions put out for one patch, all stages together."""
    layers = _convolutions(plan, cap_features(plan, max_features))
    return sum(layer.outputs * layer.voxels for layer in layers)


def num_parameters_nnunet(plan: UNetPlan, max_features: int | None = None) -> int:
    """Parameters of nnU-Net's PlainConvUNet for the same plan and cap, biases included.

    >>> num_parameters_nnunet(UNetPlan(2, 1, 2, (1, 1), (256, 256), ((3, 3),) * 7,
    ...     ((1, 1),) + ((2, 2),) * 6, (32, 64, 128, 256, 512, 512, 512)), 8)
    20244
    """
    features = cap_features(plan, max_features)
    layers = _convolutions(plan, features, kernel_of_skip=True)
    biases = sum(layer.outputs for layer in layers if layer.is_normalised)
    # nnU-Net builds the segmentation layers of deep supervision whether they are used or not; the
    # one at full resolution is a layer already.
    heads = sum((width + 1) * plan.out_channels for width in features[1:-1])
    return sum(layer.num_weights + layer.num_other for layer in layers) + biases + heads


@dataclass(frozen=True)
class _Convolution:
    """One convolution: channels, kernel, voxels of its output, and what follows it.

    A transposed one, whose kernel is its stride, multiplies one kernel voxel an output voxel.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    voxels: int
    is_normalised: bool = True
    is_transposed: bool = False

    @property
    def num_weights(self) -> int:
        return self.inputs * self.outputs * prod(self.kernel)

    @property
    def num_other(self) -> int:
        """Scale and shift of the normalisation, or a bias."""
        return 2 * self.outputs if self.is_normalised else self.outputs

    @property
    def num_macs(self) -> int:
        per_voxel = 1 if self.is_transposed else prod(self.kernel)
        return self.inputs * self.outputs * per_voxel * self.voxels


def _convolutions(
    plan: UNetPlan, features: tuple[int, ...], *, kernel_of_skip: bool = False
) -> list[_Convolution]:
    """Convolutions of DynUNet; with ``kernel_of_skip`` the decoder's kernels are nnU-Net's."""
    size = list(plan.patch_size)
    voxels = []
    for stride in plan.strides:
        size = [edge // step for edge, step in zip(size, stride, strict=True)]
        voxels.append(prod(size))
    layers = []
    inputs = plan.in_channels
    for outputs, kernel, count in zip(features, plan.kernel_size, voxels, strict=True):
        layers += [_Convolution(i, outputs, kernel, count) for i in (inputs, outputs)]
        inputs = outputs
    for level, outputs in enumerate(features[:-1]):
        below = level + 1
        kernel = plan.kernel_size[level if kernel_of_skip else below]
        stride, count = plan.strides[below], voxels[level]
        layers.append(
            _Convolution(
                features[below], outputs, stride, count, is_normalised=False, is_transposed=True
            )
        )
        layers += [_Convolution(i, outputs, kernel, count) for i in (2 * outputs, outputs)]
    head = (1,) * plan.spatial_dims
    layers.append(
        _Convolution(features[0], plan.out_channels, head, voxels[0], is_normalised=False)
    )
    return layers
