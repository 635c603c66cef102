"""Tensor mathematics of the method: the Jacobian sensitivity of a batch. No engine, no files."""

from __future__ import annotations

import torch
from torch import nn

from monai_xtiny.networks.modes import evaluated


def jacobian_sensitivity(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    r"""Sensitivity of a network's summed logits to each image of a batch.

    .. math:: s(x) = \left\| \frac{\partial}{\partial x} \sum_{k, v} f(x)_{k, v} \right\|_2

    with the sum over channels ``k`` and voxels ``v`` of the logits, before any softmax (Kimbowa et
    al. 2026, arXiv:2605.09639). The network is evaluated in evaluation mode, so that the images of
    a batch do not act on each other and nothing random happens; gradients are taken with respect
    to the images only. Afterwards, and after an error too, the training flags of all submodules,
    the parameters, their gradients and ``requires_grad`` are as they were.

    Args:
        network: maps ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.
        images: floating-point batch of shape ``(B, C, *spatial)``, on the network's device;
            a ``MetaTensor`` works too. It is not changed.

    Returns:
        One value per image, shape (B,), in the dtype of ``images``; a plain tensor.

    Raises:
        TypeError: ``images`` is not a floating-point tensor, or the network returns no tensor.
        ValueError: ``images`` has no batch, channel and spatial axes, or no image.

    >>> network = nn.Conv2d(1, 1, kernel_size=1)
    >>> _ = nn.init.constant_(network.weight, -3.0)
    >>> jacobian_sensitivity(network, torch.zeros(2, 1, 4, 4))  # |-3| sqrt(16)
    tensor([12., 12.])
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images is {kind}: give a floating-point tensor of shape (B, C, *spatial)")
    if images.ndim < 3 or images.shape[0] == 0:
        raise ValueError(
            f"images has shape {tuple(images.shape)}: give at least one image, (B, C, *spatial)"
        )
    full_precision = torch.autocast(images.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), full_precision, evaluated(network):
        inputs = images.detach().as_subclass(torch.Tensor).clone().requires_grad_(True)
        logits = network(inputs)
        if not isinstance(logits, torch.Tensor):
            raise TypeError(
                f"the network returns {type(logits).__name__}: sensitivity needs one tensor of "
                "logits (turn deep supervision off)"
            )
        (gradient,) = torch.autograd.grad(logits.sum(), inputs)
    # Squares are added up in float64: in float32 a 512 x 512 image loses digits to the order.
    norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=_wide(gradient))
    return norm.to(images.dtype)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
