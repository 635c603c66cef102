"""Small data sets as nnU-Net leaves them, written without nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import DATA, texture

Change = Callable[[dict[str, Any]], object]
NAME = "Dataset004_Hippocampus"


def write_planned(
    root: Path,
    *,
    change: Change = lambda plans: None,
    labels: dict[str, Any] | None = None,
    channels: int = 1,
    folder: str = "nnUNetPlans_2d",
    shape: Sequence[int] = (6, 40, 32),
    suffix: str = ".npz",
) -> Path:
    """A planned data set with three preprocessed cases; a label in it is no array.

    Args:
        root: ``nnUNet_preprocessed``.
        change: what is done to the plans of the hippocampus, of small patches.
        labels: of ``dataset.json``.
        channels: of the images.
        folder: of the preprocessed cases.
        shape: of them, in nnU-Net's order.
        suffix: of their format.

    Returns:
        The data set's folder.
    """
    data_set = root / NAME
    (data_set / folder).mkdir(parents=True)
    plans = json.loads((DATA / f"nnUNetPlans_{NAME}.json").read_text())
    plans["configurations"]["2d"]["patch_size"] = [32, 24]
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 16]
    for settings in plans["configurations"].values():
        settings["normalization_schemes"] = ["ZScoreNormalization"] * channels
        settings["use_mask_for_norm"] = [False] * channels
    change(plans)
    (data_set / "nnUNetPlans.json").write_text(json.dumps(plans, indent=4))
    content = {
        "channel_names": {str(index): "MRI" for index in range(channels)},
        "labels": labels or {"background": 0, "anterior": 1, "posterior": 2},
        "file_ending": ".nii.gz",
    }
    (data_set / "dataset.json").write_text(json.dumps(content))
    for index in range(3):
        image = np.stack([texture(shape, seed=index * channels + c) for c in range(channels)])
        write_case(data_set / folder / f"case{index}{suffix}", (image / 64 - 2).astype(np.float32))
    return data_set


def write_case(path: Path, image: np.ndarray) -> None:
    """A preprocessed case beside a label that nobody could open."""
    if path.suffix == ".npz":
        np.savez(path, data=image, seg=np.array([{}], dtype=object))
        return
    path.with_name(f"{path.stem}_seg{path.suffix}").write_bytes(b"no label")
    if path.suffix == ".npy":
        np.save(path, image)
        return
    import blosc2

    blosc2.asarray(image, urlpath=str(path))
