"""A case to look at: the image in gray, its labels in color, and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from PIL import Image

from monai_xtiny.system.files import atomic_write

_ALPHA, _DPI, _INCHES = 0.5, 100, 4.0
# Gray from black to white, of the image's intensities; outliers would make all else black.
_SHOWN = (0.5, 99.5)
_PLANES = ("axial", "coronal", "sagittal")


def draw_overlay(
    source: str, labels: NDArray[np.uint8], label_names: Sequence[str], title: str, path: Path
) -> None:
    """Draw an image beside itself with its labels.

    Of a volume three planes are drawn, each where most is labeled, upright and with the patient's
    right or front on the left, as radiologists look at it.

    Args:
        source: the image, or its first channel: NIfTI, or what Pillow reads.
        labels: class indices, (x, y[, z]) as in the file, for PNG (width, height).
        label_names: of the classes, background first.
        title: what the figure is called.
        path: of the PNG.
    """
    planes = _planes(source, labels)
    figure = Figure(figsize=(2 * _INCHES, _INCHES * len(planes) + 0.8), layout="constrained")
    for row, (name, image, label, aspect) in zip(
        figure.subplots(len(planes), 2, squeeze=False), planes, strict=True
    ):
        low, high = np.percentile(image, _SHOWN)
        scaled = (image - low) / ((high - low) or 1)
        for axes in row:
            axes.imshow(scaled.clip(0, 1), cmap="gray", vmin=0, vmax=1, aspect=aspect)
            axes.set_axis_off()
        row[0].set_title(name, fontsize=9)
        row[1].imshow(_colored(label), aspect=aspect, interpolation="nearest")
    figure.suptitle(title, fontsize=10, parse_math=False)
    patches = [
        Patch(color=class_color(index), label=f"{index} {name}")
        for index, name in enumerate(label_names)
        if index
    ]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_write(path, clears=False) as part:
        figure.savefig(part, dpi=_DPI, format="png", metadata={"Software": None})


def class_color(index: int) -> tuple[float, float, float]:
    """Red, green and blue of a class that is not the background; ten colors, then again."""
    red, green, blue, _ = colormaps["tab10"]((index - 1) % 10)
    return red, green, blue


def _planes(
    source: str, labels: NDArray[np.uint8]
) -> list[tuple[str, NDArray[Any], NDArray[np.uint8], float]]:
    """Name, image and labels in (rows, columns[, RGB]), and height of a voxel by its width."""
    if not source.lower().endswith((".nii", ".nii.gz")):
        with Image.open(source) as opened:
            return [("", np.asarray(opened).astype(np.float32), labels.T, 1.0)]
    stored: Any = nibabel.load(source)
    if labels.ndim == 2:
        image = np.asarray(stored.dataobj, np.float32).reshape(*labels.shape, -1)[..., 0]
        return [("", image.T, labels.T, 1.0)]
    turned = nibabel.as_closest_canonical(stored)
    places: Any = nibabel.Nifti1Image(labels.reshape(stored.shape[:3]), stored.affine)
    label = np.asarray(nibabel.as_closest_canonical(places).dataobj)
    sizes, found = voxel_sizes(turned.affine), []
    for axis, name in zip((2, 1, 0), _PLANES, strict=True):
        area = (label > 0).sum(axis=tuple({0, 1, 2} - {axis}))
        at = int(area.argmax()) if area.any() else label.shape[axis] // 2
        voxels = np.asarray(turned.dataobj[_plane_at(axis, at, turned.ndim)], np.float32)
        across, up = (sizes[other] for other in range(3) if other != axis)
        # Right on the left; up, anterior and superior, at the top.
        image, drawn = (array.T[::-1, ::-1] for array in (voxels, label.take(at, axis)))
        found.append((f"{name} {at + 1}/{label.shape[axis]}", image, drawn, up / across))
    return found


def _plane_at(axis: int, at: int, ndim: int) -> tuple[Any, ...]:
    """Index of a plane, of the first channel."""
    index: list[Any] = [slice(None)] * 3 + [0] * (ndim - 3)
    index[axis] = at
    return tuple(index)


def _colored(label: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Labels as colors (rows, columns, RGBA), the background clear."""
    table = np.zeros((256, 4), np.float32)
    for index in range(1, 256):
        table[index] = (*class_color(index), _ALPHA)
    return table[label]
