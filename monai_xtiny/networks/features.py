"""What the segmentation head of a network sees."""

from __future__ import annotations

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
