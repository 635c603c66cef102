"""A sheet of cases to look at: the image, the predicted labels over it, the uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from PIL import Image

from monai_xtiny.deploy.committee import Verdict
from monai_xtiny.deploy.overlays import class_color
from monai_xtiny.scores.uncertainty import voxel_entropy

# Pixels of a tile and between tiles; cases side by side; characters of a name.
_TILE, _GAP, _COLUMNS, _MAX_NAME = 160, 4, 2, 60
_DPI, _OPACITY = 100, 0.5
# Gray from black to white, of the image's intensities; outliers would make all else black.
_RANGE = (0.5, 99.5)
_HEAT = "inferno"


@dataclass(frozen=True)
class View:
    """A case as it is drawn.

    Args:
        title: of the case.
        tiles: image, labels over it and uncertainty side by side, (rows, columns, RGB), 0 to 1.
    """

    title: str
    tiles: NDArray[np.float64]


def view_case(verdict: Verdict, title: str, slice_axis: int | None = None) -> View:
    """Draw a case; of a volume the slice that is the least certain.

    Volumes are turned to RAS and drawn upright, with the patient's right or front on the left.

    Args:
        verdict: of the case.
        title: what stands above it.
        slice_axis: of the image, across which a volume is cut; default: axial.
    """
    image, probabilities, affine = verdict.image, verdict.probabilities, verdict.affine
    is_volume = image.ndim == 4
    if is_volume:
        axis = 2 if slice_axis is None else int(io_orientation(affine)[slice_axis, 0])
        turn = Orientation("RAS", labels=None)
        turned: list[Any] = [turn(MetaTensor(part, affine)) for part in (image, probabilities)]
        affine = turned[0].affine
        image, probabilities = (part.as_subclass(torch.Tensor) for part in turned)
    labels, entropy = probabilities.argmax(dim=0), voxel_entropy(probabilities)
    spacing = affine_to_spacing(affine).tolist()[: entropy.ndim]
    if is_volume:
        others = [other for other in range(3) if other != axis]
        at = int(entropy.sum(dim=others).argmax())
        image, labels, entropy = (
            part.select(place, at).flip(-1, -2)
            for part, place in ((image, axis + 1), (labels, axis), (entropy, axis))
        )
        spacing = [spacing[other] for other in others]
    size = _tile_size(entropy.shape, spacing)
    gray = _gray(image)
    tiles = [gray, _painted_over(gray, labels), colormaps[_HEAT](entropy.numpy().T)[..., :3]]
    gap = np.ones((_TILE, _GAP, 3))
    first, second, third = (_on_tile(tile, size) for tile in tiles)
    return View(title, np.concatenate([first, gap, second, gap, third], axis=1))


def draw_contact_sheet(views: Sequence[View], label_names: Sequence[str], path: Path) -> None:
    """Draw cases, two side by side, with a legend.

    Args:
        views: of the cases.
        label_names: of the classes, background first.
        path: of the PNG.
    """
    columns = min(_COLUMNS, len(views))
    rows = -(-len(views) // columns)
    size = (columns * (3 * _TILE + 20) / _DPI, (rows * (_TILE + 24) + 70) / _DPI)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for place in places:
        place.set_axis_off()
    for place, view in zip(places, views, strict=False):
        place.imshow(view.tiles, interpolation="nearest")
        place.set_title(_short(view.title), fontsize=8, parse_math=False, loc="left", pad=3)
    patches = [
        Patch(color=class_color(index), label=name)
        for index, name in enumerate(label_names)
        if index
    ]
    patches += [
        Patch(color=colormaps[_HEAT](share), label=text)
        for share, text in ((0.0, "sure"), (0.5, "unsure"), (1.0, "all classes alike"))
    ]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.suptitle("image, predicted labels, entropy", fontsize=9)
    figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": None})


def _gray(image: torch.Tensor) -> NDArray[np.float64]:
    """The first channel in gray, or three as red, green and blue, (rows, columns, RGB)."""
    shown = image if len(image) == 3 else image[:1]
    values = shown.double().numpy().transpose(2, 1, 0)
    low, high = np.percentile(values, _RANGE, axis=(0, 1))
    scaled = ((values - low) / np.where(high > low, high - low, 1)).clip(0, 1)
    return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def _painted_over(image: NDArray[np.float64], labels: torch.Tensor) -> NDArray[np.float64]:
    """An image with its classes in color over it."""
    classes = labels.numpy().T
    colors = np.array([class_color(index) for index in range(int(classes.max()) + 1)])[classes]
    mixed = (1 - _OPACITY) * image + _OPACITY * colors
    return np.where(classes[..., None] > 0, mixed, image)


def _tile_size(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """Width and height in pixels of an image that fits a tile, voxels as long as they are."""
    lengths = [edge * length for edge, length in zip(shape, spacing, strict=True)]
    wide, high = (max(1, round(_TILE * length / max(lengths))) for length in lengths)
    return wide, high


def _on_tile(image: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """An image in the middle of a black square."""
    drawn = Image.fromarray(np.round(255 * image).astype(np.uint8))
    grows = size[0] > drawn.width or size[1] > drawn.height
    method = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    tile = Image.new("RGB", (_TILE, _TILE))
    corner = ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2)
    tile.paste(drawn.resize(size, method), corner)
    return np.asarray(tile) / 255


def _short(title: str) -> str:
    """A title that fits above its tiles."""
    return title if len(title) <= _MAX_NAME else f"{title[:30]}...{title[-27:]}"
