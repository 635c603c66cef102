"""One initialized network on several images at once, laid out for CPUs.

A kernel of a CPU works on 16 channels at a time, whether a network has them or not. Here the images
of a batch become the channels of one: (B, C, *spatial) as (1, B * C, *spatial), each behind weights
of its own on the diagonal, so that a network of width 4 on four images takes about the time of one.
Zeros apart, the sums are those of the network alone. Channels stay last in memory, and
normalization and LeakyReLU take the memory of their input.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from monai.networks.nets import DynUNet
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.conv import _ConvNd

from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.plan.unet_plan import UNetPlan

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# Up to so many voxels PyTorch's own normalization is exact enough: it adds up one after the other.
_FEW_VOXELS = 64 * 64


class PackedNetwork(nn.Module):
    """A width-capped U-Net at initialization that sees a batch as the channels of one image.

    The images of a batch do not act on each other; but where one of them gives infinities, the
    zeros between them turn those into NaN for all. Its parameters are frozen; the gradient with
    respect to the images can be taken once for each pass. Last digits follow the number of threads,
    as kernels for channels last share their sums out among them.

    Args:
        plan: the full network's plan.
        max_features: width cap.
        seed: of the initialization, as :func:`monai_xtiny.build_network` takes it.
        num_images: the most images of a batch; fewer take the time of that many.

    Raises:
        ValueError: the cap or the number of images is not positive.

    >>> strides = ((1, 1), (2, 2), (2, 2))
    >>> plan = UNetPlan(2, 1, 2, (1, 1), (16, 16), ((3, 3),) * 3, strides, (4, 4, 4))
    >>> images = torch.randn(3, 1, 16, 16)
    >>> logits = PackedNetwork(plan, 2, seed=0, num_images=3)(images)
    >>> torch.allclose(logits, build_network(plan, 2, seed=0)(images), atol=1e-5)
    True
    """

    def __init__(self, plan: UNetPlan, max_features: int, *, seed: int, num_images: int) -> None:
        super().__init__()
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}: give at least 1")
        self.num_images = num_images
        self.memory_format = CHANNELS_LAST[plan.spatial_dims]
        network = build_network(plan, max_features, seed=seed)
        if num_images > 1:
            _put_on_the_diagonal(network, num_images)
        for block in network.modules():
            if isinstance(block, UnetBasicBlock):
                slope, eps = block.lrelu.negative_slope, block.norm1.eps
                block.norm1, block.norm2 = (_NormalizedLeakyReLU(eps, slope) for _ in range(2))
                block.lrelu = nn.Identity()
        head = network.output_block.conv.conv
        network.output_block = _Pointwise(head.weight, head.bias)
        self.network = network.requires_grad_(False).to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, *spatial) of images (B, C, *spatial)."""
        return self._unpacked(self.network(self._packed(images)), len(images))

    def skip_layers(self, images: torch.Tensor) -> torch.Tensor:
        """As DynUNet's: features of the last decoder stage, (B, F, *spatial)."""
        return self._unpacked(self.network.skip_layers(self._packed(images)), len(images))

    def _packed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) as (1, num_images * C, *spatial), filled up with the last image."""
        if len(images) > self.num_images:
            raise ValueError(f"{len(images)} images: this network takes {self.num_images}")
        rest = self.num_images - len(images)
        if rest:
            last = images[-1:].detach()
            images = torch.cat([images, last.expand(rest, *last.shape[1:])])
        return images.flatten(0, 1)[None].contiguous(memory_format=self.memory_format)

    def _unpacked(self, packed: torch.Tensor, num_images: int) -> torch.Tensor:
        """(1, num_images * K, *spatial) as (B, K, *spatial), without what filled it up."""
        return packed[0].unflatten(0, (self.num_images, -1))[:num_images]


class _Pointwise(nn.Module):
    """A convolution of one voxel, as the matrix product that it is with channels last."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().flatten(1))
        self.bias = nn.Parameter(bias.detach())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = image.movedim(1, -1)
        return nn.functional.linear(features, self.weight, self.bias).movedim(-1, 1)


class _NormalizedLeakyReLU(nn.Module):
    """Instance normalization, still with scale 1 and shift 0, and LeakyReLU; of one image."""

    def __init__(self, eps: float, slope: float) -> None:
        super().__init__()
        self.eps, self.slope = eps, slope

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image[0, 0].numel() <= _FEW_VOXELS:
            normal = nn.functional.batch_norm(image, None, None, training=True, eps=self.eps)
            return nn.functional.leaky_relu_(normal, self.slope)
        image = image.contiguous(memory_format=CHANNELS_LAST[image.ndim - 2])
        return _NormalizeInPlace.apply(image, self.eps, self.slope)


class _NormalizeInPlace(torch.autograd.Function):
    r"""Instance normalization and LeakyReLU that keep nothing but their output.

    It takes the memory of the input, and the gradient that of the output.

    .. math:: y = \phi(z), \quad z = \frac{x - \mu}{\sigma}, \quad
        g = \phi'(z) \frac{\partial L}{\partial y}, \quad
        \frac{\partial L}{\partial x} = \frac{1}{\sigma}
        \left(g - \bar{g} - z \, \overline{g z}\right)

    with means over the voxels; ``z`` comes back from ``y``, since LeakyReLU can be inverted (Rota
    Bulo et al. 2018, In-Place Activated BatchNorm, arXiv:1712.02616). Voxels are added up along
    the first spatial axis, then over the others: PyTorch's batch normalization with channels last
    adds up all of them one after the other, which loses digits.
    """

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, eps: float, slope: float) -> torch.Tensor:
        rows, num_channels = _rows(image), image.shape[1]
        mean, variance = (
            item.unflatten(0, (-1, num_channels))
            for item in torch.batch_norm_update_stats(_columns(rows), None, None, 0.0)
        )
        center = mean.mean(0)
        spread = variance.mean(0) + (mean - center).square().mean(0)
        scale = (spread + eps).rsqrt()
        torch.addcmul(_tiled(-center * scale, rows), rows, _tiled(scale, rows), out=rows)
        nn.functional.leaky_relu_(rows, slope)
        ctx.slope = slope
        ctx.mark_dirty(image)
        ctx.save_for_backward(image, scale)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        image, scale = ctx.saved_tensors
        output, num_channels = _rows(image), len(scale)
        gradient = gradients[0].contiguous(memory_format=CHANNELS_LAST[image.ndim - 2])
        inner = torch.ops.aten.leaky_relu_backward(_rows(gradient), output, ctx.slope, True)
        # Whoever else took the output is done with it: this is its gradient.
        normal = nn.functional.leaky_relu_(output, 1 / ctx.slope)
        zeros, ones = (normal.new_full(normal.shape[1:], value) for value in (0, 1))
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            _columns(inner), _columns(normal), None, None, None, zeros, ones, True, 0.0,
            [False, True, True],
        )  # fmt: skip
        mean, mean_product = (
            item.unflatten(0, (-1, num_channels)).sum(0) / (image.numel() // num_channels)
            for item in (sums, products)
        )
        shift, factor = (_tiled(-scale * item, normal) for item in (mean, mean_product))
        torch.addcmul(shift, normal, factor, out=normal)
        normal.addcmul_(inner, _tiled(scale, normal))
        return image, None, None


def _rows(image: torch.Tensor) -> torch.Tensor:
    """A view of one image, channels last: first spatial axis by the rest of it and channels."""
    axes = range(2, image.ndim)
    return image.permute(0, *axes, 1).view(image.shape[2], -1)


def _columns(rows: torch.Tensor) -> torch.Tensor:
    """A view of rows as an image whose channels, kept last, are their columns."""
    return rows.t()[None, :, :, None]


def _tiled(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Values of the channels along a row."""
    return values.repeat(rows.shape[1] // len(values))


def _put_on_the_diagonal(network: DynUNet, count: int) -> None:
    """Give a network ``count`` times the channels, each share of which computes as it did."""
    # The first convolution of a decoder stage sees the upsampled features, then the skipped ones.
    joined = {
        block.conv_block.conv1.conv for block in network.modules() if isinstance(block, UnetUpBlock)
    }
    for layer in network.modules():
        if isinstance(layer, _ConvNd):
            weight = _block(layer.weight.detach(), count, parts=2 if layer in joined else 1)
            layer.weight = nn.Parameter(weight)
            layer.in_channels, layer.out_channels = (
                count * channels for channels in (layer.in_channels, layer.out_channels)
            )
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach().repeat(count))


def _block(weight: torch.Tensor, count: int, parts: int) -> torch.Tensor:
    """Weights (O, I, *kernel) as (count * O, count * I, *kernel); inputs are ``parts`` groups."""
    grouped = weight.unflatten(1, (parts, -1))
    eye = torch.eye(count, dtype=weight.dtype)
    blocks = torch.einsum("ab,opi...->aopbi...", eye, grouped)
    return blocks.flatten(2, 4).flatten(0, 1)
