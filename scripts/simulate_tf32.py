"""How much sensitivities would change if convolutions rounded to TF32, as GPUs do by default.

usage: python scripts/simulate_tf32.py --images DATA [--num_images 6] [--seed 369]
example: python scripts/simulate_tf32.py --images DATA/Dataset076_DSB2018Fluo

TF32 keeps 10 bits of the mantissa of what is multiplied, and adds up in float32. Here images,
weights and gradients are rounded so before each convolution and each of its gradients, on any
device; scores of every width are compared with float32's.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from monai_xtiny.bundle.templates import configs_dir
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.networks.ladder import width_ladder
from monai_xtiny.plan.planner import plan_images
from monai_xtiny.scores.sensitivity import jacobian_sensitivity
from monai_xtiny.system.config_text import PlainPath


def rounded(values: torch.Tensor) -> torch.Tensor:
    """To the nearest number with 10 bits of mantissa."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class RoundedConvolution(torch.autograd.Function):
    """A convolution, transposed or not, of rounded factors; with the gradient to its input."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, layer: _ConvNd) -> torch.Tensor:
        """Convolve."""
        ones, zeros = [1] * (image.ndim - 2), [0] * (image.ndim - 2)
        transposed = isinstance(layer, _ConvTransposeNd)
        ctx.options = (layer.stride, layer.padding, ones, transposed, zeros, 1)
        ctx.save_for_backward(image, layer.weight)
        factors = (rounded(image), rounded(layer.weight))
        return torch.ops.aten.convolution(*factors, layer.bias, *ctx.options)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradient to the image alone."""
        factors = (rounded(item) for item in (gradients[0], *ctx.saved_tensors))
        found, _, _ = torch.ops.aten.convolution_backward(
            *factors, None, *ctx.options, [True, False, False]
        )
        return found, None


def in_tf32(network: nn.Module) -> nn.Module:
    """The network with rounding convolutions, changed in place."""
    for layer in network.modules():
        if isinstance(layer, _ConvNd):
            layer.forward = lambda image, layer=layer: RoundedConvolution.apply(image, layer)  # type: ignore[method-assign]
    return network


def main() -> None:
    """Print a table of every width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--num_images", type=int, default=6)
    parser.add_argument("--seed", type=int, default=369)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    plan = plan_images(arguments.images)
    search = ConfigParser(ConfigParser.load_config_files([str(configs_dir() / "search.json")]))
    search.update(
        {
            "images": PlainPath(arguments.images),
            "plan": plan,
            "num_images": arguments.num_images,
            "progress": False,
        }
    )
    images = torch.stack(list(search.get_parsed_content("sample").images))
    print("| width | largest change of an image | median | change of the mean |")
    print("|---:|---:|---:|---:|")
    for width in width_ladder(plan):
        networks = [build_network(plan, width, seed=arguments.seed) for _ in range(2)]
        exact, coarse = (
            torch.cat([jacobian_sensitivity(network, image[None]) for image in images])
            for network in (networks[0], in_tf32(networks[1]))
        )
        change = (coarse / exact - 1).abs()
        mean = abs(coarse.mean() / exact.mean() - 1)
        print(f"| {width} | {change.max():.2%} | {change.median():.2%} | {mean:.2%} |", flush=True)


if __name__ == "__main__":
    main()
