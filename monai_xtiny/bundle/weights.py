"""The weights of a bundle: read, compared, told apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_xtiny.networks.dynunet import MAX_PARAMETERS
from monai_xtiny.system.errors import root_cause


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Weights of a file: a state dict, or one under the key ``model`` as checkpoints have it.

    Args:
        path: of the file, which is read as plain weights, never as a pickle of objects.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, or such that are not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{str(file)!r} is missing: train or export the bundle again")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own words advise to load it as code.
        raise ValueError(
            f"{str(file)!r} holds no weights that can be read safely ({type(error).__name__}): "
            "train or export the bundle again"
        ) from error
    weights = content.get("model", content) if isinstance(content, Mapping) else None
    if (
        not isinstance(weights, Mapping)
        or not weights
        or not all(isinstance(value, torch.Tensor) for value in weights.values())
    ):
        raise ValueError(f"{str(file)!r} holds no state dict: train or export the bundle again")
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise ValueError(
            f"{str(file)!r} holds weights that are NaN or infinite: train or export the bundle "
            "again"
        )
    return dict(weights)


def load_network(config: Mapping[str, Any], path: Path) -> nn.Module:
    """The network of a config with the weights of a file, in evaluation mode.

    Args:
        config: one with ``network_def``.
        path: of the weights.

    Raises:
        ValueError: the weights are missing, or not those of ``network_def``, or this is none that
            can be built.
    """
    from monai.bundle import ConfigParser

    check_network_size(config, path.parent.parent / "configs" / "inference.json")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn
        network = ConfigParser(dict(config)).get_parsed_content("network_def")
    try:
        network.load_state_dict(read_weights(path))
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{str(path)!r} does not hold the network of configs/inference.json "
            f"({root_cause(error)}): train or export the bundle again"
        ) from error
    return network.eval()


def check_network_size(config: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Refuse, before it takes any memory, a network that is too large or cannot be built.

    Args:
        config: one with ``network_def``.
        source: the file or bundle of the config, for the message.

    Raises:
        ValueError: ``network_def`` has more than a billion parameters, or is no network.
    """
    from monai.bundle import ConfigParser

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = ConfigParser(dict(config)).get_parsed_content("network_def")
        count = sum(value.numel() for value in network.parameters())
    except Exception as error:
        raise ValueError(
            f"network_def of {os.fspath(source)!r} cannot be built ({root_cause(error)}): export "
            "the bundle again"
        ) from error
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"network_def of {os.fspath(source)!r} has {count:,} parameters, more than "
            f"{MAX_PARAMETERS:,}: correct its filters and channels"
        )


def check_shapes(network: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights of another network; the network may be on the device ``meta``.

    Raises:
        ValueError: names or shapes differ.
    """
    if {name: value.shape for name, value in network.state_dict().items()} != {
        name: value.shape for name, value in weights.items()
    }:
        raise ValueError(
            f"{str(path)!r} holds the weights of another network than network_def: train or export "
            "the bundle again"
        )


def hold_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
