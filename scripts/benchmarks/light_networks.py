"""Light networks of other authors, written from their publications for the comparison alone.

Each takes images (B, in_channels, H, W) of any size, which are padded with zeros to multiples of
``divisor``, and gives logits (B, out_channels, H, W). All are 2D. None of their weights is
pretrained. tests/scripts/test_light_networks.py compares their sizes with the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import interpolate, pad


class LightNetwork(nn.Module):
    """A U-shaped network: padding before it, a head of 1 x 1 convolutions after it.

    Args:
        features: channels of the last decoder stage.
        out_channels: classes.
        divisor: edges that :meth:`decode` takes are multiples of it.
    """

    def __init__(self, features: int, out_channels: int, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.head = nn.Conv2d(features, out_channels, kernel_size=1)

    def decode(self, image: torch.Tensor) -> torch.Tensor:
        """Features (B, features, H, W) of an image (B, in_channels, H, W)."""
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, H, W) of an image (B, in_channels, H, W)."""
        height, width = image.shape[2:]
        missing = (-height % self.divisor, -width % self.divisor)
        if missing == (0, 0):
            return self.head(self.decode(image))
        logits = self.head(self.decode(pad(image, (0, missing[1], 0, missing[0]))))
        return logits[:, :, :height, :width]


def twice(image: torch.Tensor) -> torch.Tensor:
    """The image at twice its size, bilinear."""
    return interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)


def conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution 3 x 3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNeXt(LightNetwork):
    """Convolutions at the high resolutions, shifted MLPs on tokens at the two low ones.

    Valanarasu and Patel, UNeXt: MLP-based Rapid Medical Image Segmentation Network, MICCAI 2022,
    arXiv:2203.04967. Encoder and decoder have three convolutional and two tokenized MLP blocks
    each; decoder features are doubled in size and added to those of the encoder. The publication
    names 32 and 64 channels of the first two stages, and an embedding of 768; the 1.47 M parameters
    that it reports are those of 16 and 32, and of MLPs as wide as their tokens.

    Args:
        in_channels: of an image.
        out_channels: classes.
        features: channels of the three convolutional and the two tokenized stages.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: Sequence[int] = (16, 32, 128, 160, 256),
    ) -> None:
        super().__init__(features[0], out_channels, divisor=32)
        first, second, third, fourth, fifth = features
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            conv_norm_relu(*channels)
            for channels in ((in_channels, first), (first, second), (second, third))
        )
        self.tokens = nn.ModuleList(
            nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
            for channels in ((third, fourth), (fourth, fifth))
        )
        self.mixers = nn.ModuleList(ShiftedMLP(width) for width in (fourth, fifth))
        self.up = nn.ModuleList(
            conv_norm_relu(*channels)
            for channels in ((fifth, fourth), (fourth, third), (third, second), (second, first))
        )
        self.up_mixers = nn.ModuleList(ShiftedMLP(width) for width in (fourth, third))
        self.last = nn.Conv2d(first, first, kernel_size=3, padding=1)

    def decode(self, image: torch.Tensor) -> torch.Tensor:
        """Features at full resolution."""
        skips = []
        for block in self.down:
            image = self.pool(block(image))
            skips.append(image)
        for project, mix in zip(self.tokens, self.mixers, strict=True):
            image = mix(project(image))
            skips.append(image)
        skips.pop()
        for level, block in enumerate(self.up):
            image = twice(block(image)) + skips.pop()
            if level < len(self.up_mixers):
                image = self.up_mixers[level](image)
        return torch.relu(self.last(twice(image)))


class ShiftedMLP(nn.Module):
    """UNeXt's tokenized block: layer norm of tokens plus what two shifted MLPs make of them.

    With shifts along the width and then the height, one depthwise convolution between them.

    Args:
        channels: of the tokens.
    """

    OFFSETS = (-2, -1, 0, 1, 2)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.across = nn.Linear(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.down = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, C, H, W), of the same shape."""
        mixed = on_channels(self.across, self.shifted(tokens, 3))
        mixed = nn.functional.gelu(self.depthwise(mixed))
        mixed = on_channels(self.down, self.shifted(mixed, 2))
        return on_channels(self.norm, tokens + mixed)

    def shifted(self, tokens: torch.Tensor, axis: int) -> torch.Tensor:
        """Groups of channels, each moved by its offset along an axis; zeros move in."""
        reach = max(self.OFFSETS)
        margins = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        groups = pad(tokens, margins).chunk(len(self.OFFSETS), dim=1)
        size = tokens.shape[axis]
        return torch.cat(
            [
                group.narrow(axis, reach - offset, size)
                for group, offset in zip(groups, self.OFFSETS, strict=True)
            ],
            dim=1,
        )


def on_channels(layer: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """A layer of the last axis, on axis 1 of (B, C, H, W)."""
    return layer(image.movedim(1, -1)).movedim(-1, 1)


class CMUNeXt(LightNetwork):
    """Large depthwise kernels, and skips that are fused in groups; by default CMUNeXt-S.

    Tang et al., CMUNeXt: An Efficient Medical Image Segmentation Network based on Large Kernel and
    Skip Fusion, 2023, arXiv:2308.01239. Five stages of a CMUNeXt block and a convolution each,
    max-pooled between them; upwards a convolution of the features at twice their size, and a
    Skip-Fusion block of them and the skip.

    Args:
        in_channels: of an image.
        out_channels: classes.
        features: channels of the five stages.
        kernel_size: of their depthwise convolutions.
        depths: their numbers of depthwise convolutions.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: Sequence[int] = (8, 16, 32, 64, 128),
        kernel_size: Sequence[int] = (3, 3, 7, 7, 9),
        depths: Sequence[int] = (1, 1, 1, 1, 1),
    ) -> None:
        super().__init__(features[0], out_channels, divisor=16)
        self.pool = nn.MaxPool2d(2)
        self.stem = conv_norm_relu(in_channels, features[0])
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.fuse = nn.ModuleList()
        before = features[0]
        for width, kernel, depth in zip(features, kernel_size, depths, strict=True):
            blocks = [LargeKernel(before, kernel) for _ in range(depth)]
            self.down.append(nn.Sequential(*blocks, conv_norm_relu(before, width)))
            before = width
        for width in reversed(features[:-1]):
            self.up.append(conv_norm_relu(before, width))
            self.fuse.append(
                nn.Sequential(
                    conv_gelu_norm(2 * width, 2 * width, kernel_size=3, groups=2),
                    *inverted_bottleneck(2 * width, width),
                )
            )
            before = width

    def decode(self, image: torch.Tensor) -> torch.Tensor:
        """Features at full resolution."""
        image = self.down[0](self.stem(image))
        skips = []
        for block in self.down[1:]:
            skips.append(image)
            image = block(self.pool(image))
        for block, fuse in zip(self.up, self.fuse, strict=True):
            image = fuse(torch.cat([skips.pop(), block(twice(image))], dim=1))
        return image


class LargeKernel(nn.Module):
    """CMUNeXt's block: a residual depthwise convolution, then an inverted bottleneck.

    Args:
        channels: in and out.
        kernel_size: of the depthwise convolution.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = conv_gelu_norm(channels, channels, kernel_size, groups=channels)
        self.mix = nn.Sequential(*inverted_bottleneck(channels, channels))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Features (B, channels, H, W), of the same shape."""
        return self.mix(image + self.depthwise(image))


def conv_gelu_norm(
    in_channels: int, out_channels: int, kernel_size: int, *, groups: int = 1
) -> nn.Sequential:
    """Convolution, GELU, batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups),
        nn.GELU(),
        nn.BatchNorm2d(out_channels),
    )


def inverted_bottleneck(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Two pointwise convolutions with four times the output's channels between them."""
    return [
        conv_gelu_norm(in_channels, 4 * out_channels, kernel_size=1),
        conv_gelu_norm(4 * out_channels, out_channels, kernel_size=1),
    ]


class TinyUNet(LightNetwork):
    """A U-Net of one CMRF module per stage.

    Chen et al., TinyU-Net: Lighter Yet Better U-Net with Cascaded Multi-receptive Fields, MICCAI
    2024, doi:10.1007/978-3-031-72114-4_60. Four encoder stages, each max-pooled, no further stage
    below them; upwards features of twice the size are concatenated with the skip.

    Args:
        in_channels: of an image.
        out_channels: classes.
        features: channels of the stages.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__(features[0], out_channels, divisor=2 ** len(features))
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            MultiReceptiveFields(*channels)
            for channels in zip((in_channels, *features[:-1]), features, strict=True)
        )
        below = (*features[1:], features[-1])
        self.up = nn.ModuleList(
            MultiReceptiveFields(deep + width, width)
            for deep, width in reversed(tuple(zip(below, features, strict=True)))
        )

    def decode(self, image: torch.Tensor) -> torch.Tensor:
        """Features at full resolution."""
        skips = []
        for block in self.down:
            skips.append(block(image))
            image = self.pool(skips[-1])
        for block in self.up:
            image = block(torch.cat([twice(image), skips.pop()], dim=1))
        return image


class MultiReceptiveFields(nn.Module):
    """The CMRF module: a cascade of depthwise convolutions on every other channel.

    A pointwise convolution brings ``out_channels / 8`` channels. Odd and even ones are added; the
    even ones pass through seven depthwise convolutions one after the other; the sum and what each
    of these puts out, ``out_channels / 2`` channels in all, pass through another pointwise one.

    Args:
        in_channels: channels in.
        out_channels: channels out, a multiple of 16.
        cascade: number of groups that the last convolution takes.
    """

    def __init__(self, in_channels: int, out_channels: int, cascade: int = 8) -> None:
        super().__init__()
        group = out_channels // (2 * cascade)
        self.narrow = norm_conv(in_channels, 2 * group)
        self.depthwise = nn.ModuleList(
            norm_conv(group, group, kernel_size=3, groups=group) for _ in range(cascade - 1)
        )
        self.widen = norm_conv(cascade * group, out_channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Features (B, out_channels, H, W) of (B, in_channels, H, W)."""
        image = nn.functional.gelu(self.narrow(image))
        odd, even = image[:, 0::2], image[:, 1::2]
        fields = [odd + even]
        for layer in self.depthwise:
            even = layer(even)
            fields.append(even)
        return nn.functional.gelu(self.widen(torch.cat(fields, dim=1)))


def norm_conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, *, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
    )
