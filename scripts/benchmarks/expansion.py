"""Linearly expanded convolutions for recipes.py, an experiment: more weights while training.

Each kernel is the product of three while it trains, 1 x 1, k x k and 1 x 1 with more channels in
between (ExpandNets, Guo et al. 2020, arXiv:1811.10495). Nothing nonlinear is between them, so they
contract to one kernel exactly, and the kernel alone has to be convolved with.
"""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.utils import parametrize


class Expansion(nn.Module):
    """A kernel (out, in, *k) as ``left (out, r out) middle (r out, r in, *k) right (r in, in)``.

    At first the product is the kernel that was there. What of ``middle`` does not show in it is
    drawn with the kernel's standard deviation.

    Args:
        weight: the kernel.
        ratio: ``r``, how many times as many channels are in between.
        generator: that draws.
    """

    def __init__(self, weight: torch.Tensor, ratio: int, generator: torch.Generator) -> None:
        super().__init__()
        num_out, num_in, *kernel = weight.shape
        left = weight.new_empty(num_out, ratio * num_out)
        right = weight.new_empty(ratio * num_in, num_in)
        for factor in (left, right):
            nn.init.orthogonal_(factor, generator=generator)
        middle = weight.new_empty(ratio * num_out, ratio * num_in, *kernel)
        middle.normal_(std=float(weight.std()), generator=generator)
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        # What left and right see of the middle makes way for the kernel.
        self.first = middle + spread(weight - contract(left, middle, right), left, right)

    def forward(self, middle: torch.Tensor) -> torch.Tensor:
        """The kernel."""
        return contract(self.left, middle, self.right)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """What is trained in place of the kernel."""
        return self.first


def contract(left: torch.Tensor, middle: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of three kernels."""
    return torch.einsum("oa,ab...,bi->oi...", left, middle, right)


def spread(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The least middle whose product with orthonormal left and right is the kernel."""
    return torch.einsum("oa,oi...,bi->ab...", left, weight, right)


def expand(network: nn.Module, ratio: int = 2, seed: int = 0) -> nn.Module:
    """The network, with every convolution over neighbors expanded; it computes what it did.

    Args:
        network: on the CPU, which is changed in place.
        ratio: channels in between, as a multiple.
        seed: of what is drawn; the global generator stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1:
            parametrize.register_parametrization(
                module, "weight", Expansion(module.weight.detach(), ratio, generator)
            )
    return network


def contract_network(network: nn.Module) -> None:
    """Make every expanded convolution one kernel again."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def expand_until_validation(
    network: nn.Module, evaluator: Engine, ratio: int = 2, seed: int = 0
) -> nn.Module:
    """Expand a network; it is contracted as a validation begins, with which training has to end."""
    evaluator.add_event_handler(Events.STARTED, lambda _engine: contract_network(network))
    return expand(network, ratio, seed)
