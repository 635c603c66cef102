"""How many voxels of each class the labels of a folder have, and where another folder's differ.

usage: python scripts/nnunet/compare_labels.py FOLDER [OTHER [SHARE]]
  all background is an error, since it agrees with anything; so are more differences than SHARE
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image


def read_label(path: Path) -> np.ndarray:
    """Class indices of a label file."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path))
    return np.asanyarray(nibabel.load(path).dataobj)


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    """Labels of a folder, by name."""
    files = sorted([*folder.rglob("*.nii.gz"), *folder.rglob("*.png")])
    return {path.name: read_label(path) for path in files}


def count_labels(labels: dict[str, np.ndarray]) -> None:
    """Print the voxels of each class.

    Raises:
        ValueError: there is no label, or one that is all background.
    """
    if not labels:
        raise ValueError("no labels: look into the log of the prediction")
    for name, label in labels.items():
        counts = np.bincount(label.ravel().astype(int))
        print(f"{name}: {counts.tolist()} voxels of the classes")
        if len(counts) < 2:
            raise ValueError(f"{name} is all background: train longer")


def compare_labels(
    labels: dict[str, np.ndarray], others: dict[str, np.ndarray], share: float
) -> None:
    """Print how many voxels differ; files belong together by their order.

    Raises:
        ValueError: their numbers or shapes differ, or more voxels than the share.
    """
    if [label.shape for label in labels.values()] != [label.shape for label in others.values()]:
        raise ValueError(f"{sorted(labels)} and {sorted(others)} are not of the same images")
    differences = [
        int((a != b).sum()) for a, b in zip(labels.values(), others.values(), strict=True)
    ]
    total = sum(label.size for label in labels.values())
    print(f"{sum(differences)} of {total} voxels differ: {differences}")
    if sum(differences) > share * total:
        raise ValueError(f"more than {share:%} of the voxels differ")


if __name__ == "__main__":
    found = read_labels(Path(sys.argv[1]))
    count_labels(found)
    if len(sys.argv) > 2:
        allowed = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
        compare_labels(found, read_labels(Path(sys.argv[2])), allowed)
