"""Images of cases for the report: tiles of one size, one row below the other, in one PNG.

A page shows each row by itself, and holds the file once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from PIL import Image, UnidentifiedImageError

from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.figures import Plane
from monai_xtiny.bundle.folder import PANELS, THUMBNAILS, Bundle
from monai_xtiny.bundle.records import ranked_cases
from monai_xtiny.data.case import Case
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.images import image_reader
from monai_xtiny.system.errors import root_cause
from monai_xtiny.system.files import atomic_write

# Pixels of a tile along each axis.
TILE, SMALL_TILE = 256, 128
_OPACITY = 0.5


def write_panels(
    planes: Sequence[Plane], case_dice: Sequence[float], path: str | os.PathLike[str]
) -> Path:
    """Write the best, the median and the worst case, a row each: image, label, prediction.

    Args:
        planes: one slice of every case.
        case_dice: mean Dice of every case; NaN where a case has no class, which is not drawn.
        path: of the PNG, 768 x 768 pixels; its folder must exist.

    Returns:
        The path.

    Raises:
        ValueError: no case has a Dice.
    """
    rows = []
    for index in ranked_cases(case_dice):
        plane = planes[index]
        gray = _rgb(plane.image)
        layers = (gray, _painted(gray, plane.label), _painted(gray, plane.prediction))
        rows.append(np.concatenate([_tile(layer, TILE) for layer in layers], axis=1))
    return _write_sheet(rows, path)


@exclusive
def write_thumbnails(bundle: Bundle, images: str | os.PathLike[str]) -> Path:
    """Write small views of the images that a bundle's search scored, a row each.

    Of a volume this is the slice in the middle, across the axis of a plan for slices and else
    across the last; of several channels, but of red, green and blue, the first.

    Args:
        bundle: the bundle, or its folder.
        images: what the search took them from.

    Returns:
        The path, ``docs/thumbnails.png``.

    Raises:
        BlockingIOError: another process writes the bundle.
        FileNotFoundError: there are no such images.
        ValueError: an image that was scored is not among them, or cannot be read.
    """
    names = bundle.selection.table.images
    if not names:
        raise ValueError(f"{str(bundle.root)!r} was imported: no images were scored for it")
    known = {case.name: case for case in find_cases(images)}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(names)} images that were scored, {missing[0]!r} for "
            f"example, are not in {os.fspath(images)!r}: give the --images of the search"
        )
    axis = bundle.plan.slice_axis
    rows = [_tile(_rgb(_middle_plane(known[name], axis)), SMALL_TILE) for name in names]
    return _write_sheet(rows, bundle.path(THUMBNAILS))


def is_sheet_of(path: Path, count: int) -> bool:
    """Whether a file is a sheet of so many rows; one of another search, or none, is not.

    Args:
        path: of the PNG, which need not exist.
        count: of rows.
    """
    if not path.is_file() or count < 1:
        return False
    wide, high = (3 * TILE, TILE) if path.name == Path(PANELS).name else (SMALL_TILE, SMALL_TILE)
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.size == (wide, high * count)
    except (UnidentifiedImageError, OSError, ValueError):
        return False


def _middle_plane(case: Case, axis: int | None) -> np.ndarray:
    """The slice in the middle of a case as people look at it, (rows, columns[, RGB])."""
    try:
        reader = image_reader(case)
        load = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)
        image = load(list(case.images))
        if image.ndim > 3:
            image = Orientation("RAS", labels=None)(MetaTensor(image, affine=image.affine))
    except Exception as error:
        raise ValueError(f"case {case.name!r}: {root_cause(error)}: repair the file") from error
    array = np.asarray(image)
    if array.ndim > 3:
        across = (2 if axis is None else axis) + 1
        array = array.take(array.shape[across] // 2, axis=across)
    # (C, x, y) to (rows, columns, C); y points upwards in a volume, downwards in a 2D image.
    array = array.transpose(2, 1, 0)
    if case.kind != "raster":
        array = array[::-1]
    return array if array.shape[-1] == 3 and case.kind == "raster" else array[..., 0]


def _rgb(image: np.ndarray) -> np.ndarray:
    """An image from its least to its largest value, (rows, columns, 3) in 0..1."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = values.min(), values.max()
    values = (values - low) / (high - low if high > low else 1)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


def _painted(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """An image with its classes in color over it; background is left as it is."""
    classes = np.asarray(label).astype(np.int64)
    colors = np.array([colormaps["tab10"](index)[:3] for index in range(10)])[classes % 10]
    mixed = (1 - _OPACITY) * image + _OPACITY * colors
    return np.where(classes[..., None] > 0, mixed, image)


def _tile(image: np.ndarray, size: int) -> np.ndarray:
    """An image fit into a black square, (size, size, 3) in 0..255."""
    picture = Image.fromarray(np.round(255 * image).astype(np.uint8))
    scale = size / max(picture.size)
    fitted = tuple(max(1, round(edge * scale)) for edge in picture.size)
    # Smaller images keep their voxels as they are.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    tile = Image.new("RGB", (size, size))
    tile.paste(
        picture.resize((fitted[0], fitted[1]), method),
        ((size - fitted[0]) // 2, (size - fitted[1]) // 2),
    )
    return np.asarray(tile)


def _write_sheet(rows: Sequence[np.ndarray], path: str | os.PathLike[str]) -> Path:
    """Rows of tiles as one PNG, whole or not at all."""
    with atomic_write(path) as part:
        Image.fromarray(np.concatenate(rows, axis=0)).save(part, format="PNG", optimize=True)
    return Path(path)
