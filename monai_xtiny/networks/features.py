"""What the segmentation head of a network sees."""

from __future__ import annotations

import torch
from monai.networks.nets import DynUNet

from monai_xtiny.networks.packed import PackedNetwork


def decoder_features(network: DynUNet | PackedNetwork, images: torch.Tensor) -> torch.Tensor:
    """What the segmentation head of a network sees: the features of its last decoder stage.

    The network is evaluated in evaluation mode and without gradients, and left as it was.

    Args:
        network: maps (B, C, *spatial) to logits.
        images: batch of shape (B, C, *spatial), on the network's device.

    Returns:
        Shape (B, F, *spatial), with the F channels of the first stage's width.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with torch.no_grad():
            return network.skip_layers(images.as_subclass(torch.Tensor))
    finally:
        for module, mode in modes:
            module.training = mode
