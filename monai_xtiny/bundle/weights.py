"""The weights of a bundle: read, compared, told apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_xtiny.bundle.folder import find_bundle
from monai_xtiny.system.errors import root_cause
from monai_xtiny.system.files import read_json

MODEL_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
WEIGHTS_DIGEST = "weights_sha256"


def load_network(bundle_dir: str | os.PathLike[str]) -> nn.Module:
    """The network of a bundle with the weights of ``models/model.pt``, in evaluation mode.

    Raises:
        ValueError: the weights are missing, or not those of ``network_def``.
    """
    bundle = find_bundle(bundle_dir)
    parser = ConfigParser(read_json(bundle / "configs" / "inference.json"))
    path = bundle / "models" / "model.pt"
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn
        network = parser.get_parsed_content("network_def")
    try:
        weights = torch.load(path, weights_only=True, map_location="cpu")
        network.load_state_dict(weights.get("model", weights))
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} does not hold the network of configs/inference.json "
            f"({root_cause(error)}): train or export the bundle again"
        ) from error
    return network.eval()


def check_onnx(bundle_dir: str | os.PathLike[str]) -> None:
    """Refuse ONNX files whose weights are not those of ``models/model.pt``.

    Args:
        bundle_dir: the bundle; without ONNX files of ``deploy`` there is nothing to check.

    Raises:
        ValueError: the weights differ.
    """
    models = Path(bundle_dir) / "models"
    files = [models / name for name in (MODEL_FILE, INT8_FILE) if (models / name).is_file()]
    if not files:
        return
    weights = torch.load(models / "model.pt", weights_only=True, map_location="cpu")
    digest = weights_digest(weights.get("model", weights))
    for file in files:  # the digest stands in the file as it is: onnx need not be installed
        if digest.encode() not in file.read_bytes():
            raise ValueError(
                f"{str(file)!r} does not hold the weights of model.pt, which was trained since: "
                "run python -m monai_xtiny deploy again, or remove it"
            )


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
