"""Measure and picture predicted labels against the true ones, and print what the search chose.

usage: show_predictions.py --bundle B --images I --labels L --predictions P --output PNG
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.metrics import DiceMetric
from monai.networks import one_hot
from PIL import Image

from monai_xtiny.bundle.figures import Plane, plot_overlay


def load(path: Path) -> np.ndarray:
    """An image or label as an array: (x, y[, z]), or (rows, columns[, channels]) for pictures."""
    if ".nii" in path.name:
        return np.asarray(nibabel.load(path).dataobj)
    return np.asarray(Image.open(path))


def middle(volume: np.ndarray, is_nifti: bool) -> np.ndarray:
    """A plane to show: the picture itself, or a volume's middle slice with y upwards."""
    if not is_nifti:
        return volume
    plane = volume[:, :, volume.shape[2] // 2] if volume.ndim > 2 else volume
    return np.flipud(plane.T)


def main() -> None:
    """Print the choice and the Dice of each class, and write the overlay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("bundle", "images", "labels", "predictions", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    configs = arguments.bundle / "configs"
    search = json.loads((arguments.bundle / "docs" / "search.json").read_text(encoding="utf-8"))
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]

    metric = DiceMetric(include_background=False, reduction="none", num_classes=len(classes))
    shown = []
    for path in sorted(arguments.predictions.iterdir()):
        truth_path = arguments.labels / path.name
        case = path.name.removesuffix(".gz").rsplit(".", 1)[0]
        image_path = next(arguments.images.glob(f"{case}_0000.*"), None)
        if not truth_path.is_file() or image_path is None:
            continue
        prediction, truth = load(path), load(truth_path)
        batches = (torch.as_tensor(values.astype(np.int64))[None, None] for values in
                   (prediction, truth))  # fmt: skip
        dice = metric(*(one_hot(batch, num_classes=len(classes)) for batch in batches))
        shown.append((case, load(image_path), truth, prediction, dice.nanmean().item()))
    if not shown:
        raise SystemExit(f"error: no label in {arguments.labels} belongs to a prediction")

    selected = search["selected"]
    print(f"selected width: {selected['max_features']}")
    print(f"parameters: {selected['num_parameters']:,}")
    for index, dice in enumerate(metric.aggregate().nanmean(dim=0).tolist(), start=1):
        print(f"Dice of {classes[str(index)]}: {dice:.3f} ({len(shown)} images)")

    is_nifti = any(".nii" in path.name for path in arguments.predictions.iterdir())
    planes = [
        Plane(case, *(middle(part, is_nifti) for part in (image, truth, prediction)))
        for case, image, truth, prediction, _ in shown
    ]
    plot_overlay(planes, [dice for *_, dice in shown], arguments.output)
    print(f"curve: {arguments.bundle / 'docs' / 'sensitivity.png'}")
    print(f"overlay: {arguments.output}")


if __name__ == "__main__":
    main()
