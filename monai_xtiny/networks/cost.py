"""What a network costs: parameters, multiply-accumulates, activations; from the plan alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from monai_xtiny.networks.ladder import cap_features
from monai_xtiny.plan.unet_plan import UNetPlan


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
    biases = sum(layer.outputs for layer in layers if layer.is_normalized)
    # nnU-Net builds the segmentation layers of deep supervision whether they are used or not; the
    # one at full resolution is a layer already.
    heads = sum((width + 1) * plan.out_channels for width in features[1:-1])
    return sum(layer.num_weights + layer.num_other for layer in layers) + biases + heads


@dataclass(frozen=True)
class _Convolution:
    """One convolution: channels, kernel, voxels of its output, and what follows it.

    A transposed one, whose kernel is its stride, multiplies one kernel voxel per output voxel.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    voxels: int
    is_normalized: bool = True
    is_transposed: bool = False

    @property
    def num_weights(self) -> int:
        return self.inputs * self.outputs * prod(self.kernel)

    @property
    def num_other(self) -> int:
        """Scale and shift of the normalization, or a bias."""
        return 2 * self.outputs if self.is_normalized else self.outputs

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
                features[below], outputs, stride, count, is_normalized=False, is_transposed=True
            )
        )
        layers += [_Convolution(i, outputs, kernel, count) for i in (2 * outputs, outputs)]
    head = (1,) * plan.spatial_dims
    layers.append(
        _Convolution(features[0], plan.out_channels, head, voxels[0], is_normalized=False)
    )
    return layers
