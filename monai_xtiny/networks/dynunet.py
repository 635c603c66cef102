"""The one place where a plan becomes a network: stock ``monai.networks.nets.DynUNet``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.nets import DynUNet

from monai_xtiny.networks.cost import network_cost
from monai_xtiny.networks.ladder import cap_features
from monai_xtiny.plan.unet_plan import UNetPlan

# Of a network that is built; nnU-Net's largest have half of it.
MAX_PARAMETERS = 1_000_000_000
# Weights are drawn from the global generator, one network at a time.
_GENERATOR = threading.Lock()


def network_config(plan: UNetPlan, max_features: int | None = None) -> dict[str, Any]:
    """Arguments of ``DynUNet`` for a plan under a cap, in JSON's types."""
    return {
        "spatial_dims": plan.spatial_dims,
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "kernel_size": [list(kernel) for kernel in plan.kernel_size],
        "strides": [list(stride) for stride in plan.strides],
        "upsample_kernel_size": [list(stride) for stride in plan.strides[1:]],
        "filters": list(cap_features(plan, max_features)),
        "norm_name": ["INSTANCE", {"affine": True}],
        "act_name": ["leakyrelu", {"inplace": True, "negative_slope": 0.01}],
        "deep_supervision": False,
        "trans_bias": True,
    }


def network_definition(plan: UNetPlan, max_features: int | None = None) -> dict[str, Any]:
    """The network of a plan under a cap as MONAI's configs define one: a bundle's `network_def`.

    Args:
        plan: the full network's plan.
        max_features: width cap; ``None`` defines the full network.
    """
    return {"_target_": DynUNet.__name__, **network_config(plan, max_features)}


def network_from_config(config: Mapping[str, Any]) -> DynUNet:
    """The network of :func:`network_config` or :func:`network_definition`, without MONAI's parser.

    Its weights are drawn from the global generator, to be replaced by those of a checkpoint.
    """
    return DynUNet(**{name: value for name, value in config.items() if name != "_target_"})


def build_network(
    plan: UNetPlan,
    max_features: int | None = None,
    *,
    seed: int | None = None,
    device: str | torch.device = "cpu",
) -> DynUNet:
    """Build the width-capped U-Net at nnU-Net's initialization (He normal, a = 0.01, zero biases).

    DynUNet's convolutions have no bias (a no-op before instance normalization), and with
    anisotropic kernels its decoder uses the kernel of the deeper level where nnU-Net uses the skip
    level's.

    Args:
        plan: the full network's plan.
        max_features: width cap; ``None`` builds the full network.
        seed: of the initialization; drawn on the CPU, so every device gets the same weights, and
            the global generator is left as it was. ``None`` draws from the global generator.
        device: where the network is put.

    Returns:
        The network, in training mode as PyTorch makes it; in ``(B, in_channels, *patch_size)``,
        out ``(B, out_channels, *patch_size)`` logits.

    Raises:
        ValueError: the cap is not positive, or the network has more than a billion parameters.
    """
    count = network_cost(plan, max_features).num_parameters
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"the network has {count:,} parameters, more than {MAX_PARAMETERS:,}: plan fewer "
            "features per stage"
        )
    arguments = network_config(plan, max_features)
    if seed is None:
        return network_from_config(arguments).to(device)
    with _GENERATOR:
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(seed)
            network = network_from_config(arguments)
        finally:
            torch.default_generator.set_state(state)
    return network.to(device)
