"""The weights of a bundle: read, compared, told apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_xtiny.system.errors import root_cause


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Weights of a file: a state dict, or one under the key ``model`` as checkpoints have it.

    Args:
        path: of the file, which is read as plain weights, never as a pickle of objects.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights.
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
    return dict(weights)


def load_network(config: Mapping[str, Any], path: Path) -> nn.Module:
    """The network of a config with the weights of a file, in evaluation mode.

    Args:
        config: one with ``network_def``.
        path: of the weights.

    Raises:
        ValueError: the weights are missing, or not those of ``network_def``.
    """
    from monai.bundle import ConfigParser

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
