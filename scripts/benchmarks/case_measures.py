"""What is measured of a case besides Dice and HD95."""

from __future__ import annotations

from typing import Any

import torch
from monai.data.utils import affine_to_spacing
from monai.metrics import compute_surface_dice
from monai.metrics.panoptic_quality import compute_panoptic_quality
from scipy.ndimage import label as connected_parts


def surface_dice(prediction: Any, label: Any, tolerance: float) -> list[float | None]:
    """Normalized surface Dice of each foreground class; ``None`` where the label lacks it.

    Args:
        prediction: one-hot, (K, *spatial), with the affine of the image.
        label: likewise.
        tolerance: in the units of the affine.
    """
    spacing = affine_to_spacing(prediction.affine)[: prediction.ndim - 1].tolist()
    values = compute_surface_dice(
        prediction[None],
        label[None],
        class_thresholds=[tolerance] * (len(label) - 1),
        spacing=spacing,
    )[0]
    return [
        None if not truth.any() else (float(value) if found.any() else 0.0)
        for value, truth, found in zip(values, label[1:], prediction[1:], strict=True)
    ]


def count_instances(prediction: Any, label: Any) -> list[float]:
    """Found, wrong and missed objects, and the sum of the found ones' IoU.

    Objects are connected parts of the foreground; one is found if its IoU with a part of the label
    is above 0.5. Nuclei that touch are one object in both.
    """
    parts = [
        torch.from_numpy(connected_parts(item.argmax(dim=0).cpu().numpy() > 0)[0]).int()
        for item in (prediction, label)
    ]
    return compute_panoptic_quality(*parts, output_confusion_matrix=True).tolist()
