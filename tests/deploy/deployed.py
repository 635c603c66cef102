"""Small bundles for the tests of deployment; exporting takes long, so it is done once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from monai_xtiny.deploy.onnx_model import export_onnx
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.choice import Selection
from tests.exports import exported
from tests.shared import made_once

PLANS = {
    "pictures": UNetPlan(
        2, 1, 2, (1, 1), (32, 48), ((3, 3),) * 4, ((1, 1), *((2, 2),) * 3), (32, 64, 128, 256)
    ),
    "volumes": UNetPlan(
        3,
        2,
        3,
        (1.5, 1.5, 5.0),
        (24, 16, 6),
        ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        (32, 64, 128),
    ),
}


def write_bundle(kind: str, folder: Path) -> Path:
    """A bundle of width 4 at its initialization; normalization has weights of its own."""
    plan = PLANS[kind]
    stages = len(plan.strides)
    ladder = tuple(
        Rung(width, (width,) * stages, 100 * width, 101 * width, width / 10, ((2.0, 1.0 + width),))
        for width in (16, 8, 4, 2, 1)
    )
    images = ("a.png", "b.png") if kind == "pictures" else ("a.nii.gz", "b.nii.gz")
    seconds = {"load": 1.0, "score": 2.0, "total": 3.0}
    table = ScoreTable(plan, ladder, (5,), images, seconds, {})
    selection = Selection("paper", 4, {4: 1.0}, None, table)
    bundle = exported(selection, folder / f"{kind}_segmentation")
    network = build_network(plan, 4, seed=5)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.named_parameters():
        if value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.data += noise - 0.5 if name.endswith("bias") else noise
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


def _export(kind: str, folder: Path) -> None:
    """A bundle with its ONNX file."""
    export_onnx(write_bundle(kind, folder))


def exported_bundle(kind: str, folder: Path) -> Path:
    """A copy of the bundle of :func:`write_bundle` with its ``models/model.onnx``."""
    made = made_once(f"exported_{kind}", lambda root: _export(kind, root))
    bundle = made / f"{kind}_segmentation"
    return Path(shutil.copytree(bundle, folder / bundle.name))


def drawn_images(shape: tuple[int, ...], count: int = 4) -> list[np.ndarray]:
    """Normalized random images."""
    generator = np.random.default_rng(1)
    return [generator.standard_normal(shape, dtype=np.float32) for _ in range(count)]
