# Written by monai_xtiny 0.2.0, which need not be installed.
"""What an evaluation measures of each case and class, by MONAI's metrics on the image's own grid.

A class counts in the cases whose label has it. Where it is not there, or a distance has no second
surface, there is no value (NaN), and no mean takes it for one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import (
    CumulativeIterationMetric,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.metrics.utils import do_metric_reduction, ignore_background

from .cases import Case, image_files

_NIFTI = (".nii", ".nii.gz")


def length_unit(cases: Sequence[Case]) -> str:
    """What distances are in: ``mm`` where all images are NIfTI, else ``pixels``.

    >>> length_unit([{"image": ["a_0000.nii.gz"]}]), length_unit([{"image": "a.png"}])
    ('mm', 'pixels')
    """
    files = [file.lower() for case in cases for file in image_files(case)]
    return "mm" if files and all(file.endswith(_NIFTI) for file in files) else "pixels"


class CaseMetric(CumulativeIterationMetric):
    """A measure of each case and foreground class, (N, classes), NaN where it is not defined.

    MONAI's handlers pass no spacing to its metrics; this takes it from the predictions.

    Args:
        unit: ``mm``, so that the predictions' affines tell the size of a voxel, or ``pixels``.
    """

    def __init__(self, unit: str) -> None:
        super().__init__()
        if unit not in ("mm", "pixels"):
            raise ValueError(f"the unit of lengths is {unit!r}: give mm or pixels")
        self.unit = unit

    def measure(
        self, prediction: torch.Tensor, label: torch.Tensor, spacing: list[float]
    ) -> torch.Tensor:
        """Measure one case: one-hot masks (1, C, *spatial), size of a voxel; values (1, C - 1)."""
        raise NotImplementedError

    def aggregate(self) -> torch.Tensor:
        """Mean over classes, then over cases, of what is defined; NaN where nothing is."""
        mean, count = do_metric_reduction(self.get_buffer(), "mean")
        return mean if count > 0 else torch.full_like(mean, math.nan)

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """Values (B, C - 1) of masks (B, C, *spatial), which lie on one grid."""
        spatial_dims = y_pred.ndim - 2
        spacing = [1.0] * spatial_dims
        if self.unit == "mm" and isinstance(y_pred, MetaTensor):
            spacing = affine_to_spacing(y_pred.affine)[:spatial_dims].tolist()
        # On the CPU, where MONAI asks a tree for the nearest voxel of a surface.
        masks = [torch.as_tensor(mask).cpu() for mask in (y_pred, y)]
        found = [
            self.measure(prediction[None], label[None], spacing)
            for prediction, label in zip(*masks, strict=True)
        ]
        return torch.cat(found).to(y_pred.device)


class SurfaceDice(CaseMetric):
    """MONAI's normalized surface Dice (NSD): the share of both surfaces that lies near the other.

    Surfaces are weighted by their area, as in the publication (Nikolov et al. 2021,
    arXiv:1809.04430). A class that is missed has 0.

    Args:
        tolerance: distance that still counts as near.
        unit: of it.
    """

    def __init__(self, tolerance: float, unit: str) -> None:
        super().__init__(unit)
        is_number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
        if not is_number or not 0 <= tolerance < math.inf:
            raise ValueError(f"--nsd_tolerance is {tolerance!r}: give a number of {unit}")
        self.tolerance = tolerance

    def measure(
        self, prediction: torch.Tensor, label: torch.Tensor, spacing: list[float]
    ) -> torch.Tensor:
        """As MONAI has it, but NaN where the label lacks the class, as its Dice is."""
        with _silent_of_empty():
            found = compute_surface_dice(
                prediction,
                label,
                class_thresholds=[self.tolerance] * (label.shape[1] - 1),
                spacing=spacing,
                use_subvoxels=True,
            )
        return torch.where(_voxels(label) > 0, found, math.nan)


class Hausdorff95(CaseMetric):
    """MONAI's 95th percentile of the distances between both surfaces, the larger of the two ways.

    There is none where the label or the prediction lacks the class.
    """

    def measure(
        self, prediction: torch.Tensor, label: torch.Tensor, spacing: list[float]
    ) -> torch.Tensor:
        """As MONAI has it, but NaN in place of infinity."""
        with _silent_of_empty():
            found = compute_hausdorff_distance(prediction, label, percentile=95, spacing=spacing)
        return torch.where(torch.isfinite(found), found, math.nan)


class Volume(CaseMetric):
    """Volume of each class: its voxels times the size of one, 0 where there is none.

    MONAI has the absolute difference in voxels alone (``AbsoluteVolumeDifferenceMetric``), which
    neither tells too much from too little nor knows the spacing.

    Args:
        of: ``prediction`` or ``label``.
        unit: ``mm``: the volume is in ml, of a 2D image in mm2; ``pixels``: in pixels.
    """

    def __init__(self, of: str, unit: str) -> None:
        super().__init__(unit)
        if of not in ("prediction", "label"):
            raise ValueError(f"the volume of {of!r}: give prediction or label")
        self.of = of

    def measure(
        self, prediction: torch.Tensor, label: torch.Tensor, spacing: list[float]
    ) -> torch.Tensor:
        """Sum over the voxels."""
        size = math.prod(spacing) / (1000 if volume_unit(self.unit, len(spacing)) == "ml" else 1)
        return _voxels(label if self.of == "label" else prediction) * size


def volume_unit(unit: str, spatial_dims: int) -> str:
    """What volumes are in, by the unit of lengths.

    >>> volume_unit("mm", 3), volume_unit("mm", 2), volume_unit("pixels", 2)
    ('ml', 'mm2', 'pixels')
    """
    if unit != "mm":
        return unit
    return "ml" if spatial_dims == 3 else "mm2"


def _voxels(masks: torch.Tensor) -> torch.Tensor:
    """Voxels of each foreground class, (B, C - 1)."""
    return ignore_background(masks)[0].flatten(2).sum(dim=2, dtype=torch.float64).float()


@contextmanager
def _silent_of_empty() -> Iterator[None]:
    """Without MONAI's warnings that a mask is empty: the summary counts such cases."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the (ground truth|prediction) of class", UserWarning)
        yield
