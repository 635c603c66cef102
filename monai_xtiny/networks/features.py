"""What the segmentation head of a network sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch import nn

from monai_xtiny.networks.modes import evaluated
from monai_xtiny.networks.packed import PackedNetwork


def decoder_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the segmentation head of a network sees: the features of its last decoder stage.

    The network is evaluated in evaluation mode and without gradients, and left as it was.

    Args:
        network: of :func:`monai_xtiny.build_network` or packed; maps (B, C, *spatial) to logits.
        images: batch of shape (B, C, *spatial), on the network's device.

    Returns:
        Shape (B, F, *spatial), with the F channels of the first stage's width.

    Raises:
        TypeError: it is another network.
    """
    if not isinstance(network, (DynUNet, PackedNetwork)):
        raise TypeError(
            f"the network is {type(network).__name__}, whose last decoder stage is unknown: give "
            "one of build_network"
        )
    with evaluated(network), torch.no_grad():
        return network.skip_layers(images.as_subclass(torch.Tensor))


@contextmanager
def pooled_features(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what the encoder of a network finds in the images that it sees meanwhile.

    Of the stages after the first as far as the middle. Of the first little is learned, and instance
    normalization takes away the means of the deepest, where images of the same things lie as far
    apart as others.

    Args:
        network: of :func:`monai_xtiny.build_network`.

    Yields:
        A list that grows by one tensor (B, F) with each forward pass: for each image of the batch,
        the features of these stages, averaged over space.

    Raises:
        TypeError: it is another network.
    """
    if not isinstance(network, DynUNet):
        raise TypeError(
            f"the network is {type(network).__name__}, whose encoder is unknown: give one of "
            "build_network"
        )
    encoder = [network.input_block, *network.downsamples, network.bottleneck]
    stages = encoder[1 : 1 + len(encoder) // 2]
    pooled: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []

    def pool(stage: nn.Module, _inputs: Any, found: torch.Tensor) -> None:
        parts.append(found.as_subclass(torch.Tensor).float().flatten(2).mean(dim=2))
        if stage is stages[-1]:
            pooled.append(torch.cat(parts, dim=1))
            parts.clear()

    handles = [stage.register_forward_hook(pool) for stage in stages]
    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()
