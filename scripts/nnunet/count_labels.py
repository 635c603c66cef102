"""How many voxels of each class the labels of a folder have; all background is an error.

usage: python scripts/nnunet/count_labels.py FOLDER
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


def count_labels(folder: Path) -> None:
    """Print the counts of each file.

    Raises:
        ValueError: a file is all background: it would agree with any other such.
    """
    files = sorted([*folder.glob("*.nii.gz"), *folder.glob("*.png")])
    for path in files:
        counts = np.bincount(read_label(path).ravel().astype(int))
        print(f"{path.name}: {counts.tolist()} voxels of the classes")
        if len(counts) < 2:
            raise ValueError(f"{path} is all background: train longer")
    if not files:
        raise ValueError(f"no labels in {folder}")


if __name__ == "__main__":
    count_labels(Path(sys.argv[1]))
