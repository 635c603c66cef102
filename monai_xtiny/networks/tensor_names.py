"""What the tensors of a network are called here and in nnU-Net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monai_xtiny.plan.unet_plan import UNetPlan


def pair_tensor_names(plan: UNetPlan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """DynUNet's name of each tensor, nnU-Net's, and the shape that DynUNet has.

    nnU-Net's convolutions have biases besides, which do nothing before instance normalization.

    >>> strides = ((1, 1), (2, 2), (2, 2))
    >>> plan = UNetPlan(2, 1, 2, (1, 1), (32, 32), ((3, 3),) * 3, strides, (4, 8, 8))
    >>> next(pair_tensor_names(plan))[:2]
    ('input_block.conv1.conv.weight', 'encoder.stages.0.0.convs.0.conv.weight')

    Args:
        plan: of the network, with its own features per stage; axes are MONAI's.
    """
    features, kernels, last = plan.features_per_stage, plan.kernel_size, len(plan.kernel_size) - 1
    inputs = plan.in_channels
    for stage, (width, kernel) in enumerate(zip(features, kernels, strict=True)):
        ours = "input_block" if stage == 0 else f"downsamples.{stage - 1}"
        ours = "bottleneck" if stage == last else ours
        yield from _block_layers(ours, f"encoder.stages.{stage}.0", inputs, width, kernel)
        inputs = width
    for stage in range(last):
        level = last - 1 - stage
        width, below = features[level], features[level + 1]
        ours, theirs = f"upsamples.{stage}.transp_conv.conv", f"decoder.transpconvs.{stage}"
        yield f"{ours}.weight", f"{theirs}.weight", (below, width, *plan.strides[level + 1])
        yield f"{ours}.bias", f"{theirs}.bias", (width,)
        yield from _block_layers(
            f"upsamples.{stage}.conv_block",
            f"decoder.stages.{stage}",
            2 * width,
            width,
            kernels[level + 1],
        )
    ours, theirs = "output_block.conv.conv", f"decoder.seg_layers.{last - 1}"
    yield (
        f"{ours}.weight",
        f"{theirs}.weight",
        (plan.out_channels, features[0], *[1] * plan.spatial_dims),
    )
    yield f"{ours}.bias", f"{theirs}.bias", (plan.out_channels,)


def _block_layers(
    ours: str, theirs: str, inputs: int, width: int, kernel: Sequence[int]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The two convolutions of a stage, and their normalizations."""
    for number in (1, 2):
        there = f"{theirs}.convs.{number - 1}"
        channels = inputs if number == 1 else width
        yield f"{ours}.conv{number}.conv.weight", f"{there}.conv.weight", (width, channels, *kernel)
        yield f"{ours}.norm{number}.weight", f"{there}.norm.weight", (width,)
        yield f"{ours}.norm{number}.bias", f"{there}.norm.bias", (width,)
