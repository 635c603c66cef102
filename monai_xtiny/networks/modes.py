"""A network as it is scored, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters for a while; every flag is put back as it was.

    MONAI's ``eval_mode`` forbids gradients to the images, and puts every submodule of a network in
    training mode back into it, those that were frozen in evaluation mode too.

    >>> network = nn.Dropout()
    >>> with evaluated(network):
    ...     network.training
    False
    >>> network.training
    True
    """
    training = [(module, module.training) for module in network.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        network.eval()
        # Without weight gradients the convolutions need not keep their inputs.
        for parameter, _ in requires_grad:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)
