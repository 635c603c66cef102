# Written by monai_xtiny 0.1.0, which need not be installed.
"""One gate for every image: what is read, and what is refused in a line.

The search imports this module; every bundle carries a copy as ``scripts/gate.py``, which its
configs load by path. So training, validation, inference and evaluation accept and refuse the same
files as the search, by the same rules. It imports NumPy, PyTorch, MONAI, nibabel and Pillow alone.
Where a file could be read in more than one way, it is refused: a wrong guess would go unnoticed.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Hashable, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import NibabelReader
from nibabel.openers import ImageOpener
from PIL import Image

# Images, or an image and its label, further from each other than this, in voxels, are of two grids.
MAX_MISPLACEMENT = 0.1

_NIFTI = (".nii", ".nii.gz")
_RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# Pillow's modes whose pixels are read as they are in the file: gray, and three colors of 8 bits.
_GRAY_MODES = ("1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_MODES = (*_GRAY_MODES, "RGB")
# EXIF's number for the turns and flips that viewers apply and Pillow does not.
_ORIENTATION = 274
_BITS, _SAMPLES, _SAMPLE_FORMAT = 258, 277, 339  # TIFF's numbers
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


def is_nifti(path: object) -> bool:
    """Whether a file's ending is that of NIfTI.

    >>> is_nifti("scan.nii.png"), is_nifti("SCAN.NII.GZ")
    (False, True)
    """
    return str(path).lower().endswith(_NIFTI)


def find_file_problem(path: str | os.PathLike[str], *, is_label: bool = False) -> str | None:
    """What keeps a file from being read safely, judged by its header; no voxel is read.

    Args:
        path: NIfTI, PNG, JPG, TIFF or BMP by its ending; of other files only their kind is judged.
        is_label: the file holds class indices, which may be those of a palette.

    Returns:
        The problem and what to do about it; ``None`` if there is none.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        return f"it cannot be read ({error.strerror}): check the path"
    if stat.S_ISDIR(mode):
        return None  # a DICOM series
    if not stat.S_ISREG(mode):
        return "it is no regular file: leave it out"
    lower = name.lower()
    try:
        if lower.endswith(_NIFTI):
            return _find_nifti_problem(name)
        return _find_raster_problem(name, is_label) if lower.endswith(_RASTER) else None
    except Exception as error:
        # Readers have errors of their own for damaged files.
        text = " ".join(str(error).split())
        return f"it cannot be read ({text or type(error).__name__}): repair it or leave it out"


def check_files(data: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """Refuse the files of a case, before they are read; a transform of a case.

    Args:
        data: ``image``, a file or one per channel, and perhaps ``label``.

    Returns:
        The same dictionary.

    Raises:
        ValueError: what is wrong with which file.
    """
    for key in ("image", "label"):
        for path in _files(data.get(key)):
            problem = find_file_problem(path, is_label=key == "label")
            if problem is not None:
                raise ValueError(f"{os.fspath(path)!r}: {problem}")
    check_grids(_files(data.get("image")))
    return data


def check_grids(paths: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse channels of a case that do not lie on one grid.

    Args:
        paths: one file per channel.

    Raises:
        ValueError: one has another shape, or lies 0.1 voxel or more away from the first.
    """
    if len(paths) < 2 or not all(map(is_nifti, paths)):
        return
    images: list[Any] = [nibabel.load(os.fspath(path)) for path in paths]
    first, *others = images
    for path, other in zip(paths[1:], others, strict=True):
        if first.shape != other.shape:
            raise ValueError(
                f"{os.fspath(path)!r}: the channels differ in shape, {first.shape} and "
                f"{other.shape}: resample them to one grid"
            )
        distance = measure_misplacement(first.shape, first.affine, other.affine)
        if not distance < MAX_MISPLACEMENT:
            raise ValueError(
                f"{os.fspath(path)!r}: the channels lie {distance:.1f} voxels apart: resample them "
                "to one grid"
            )


def measure_misplacement(
    shape: Sequence[int], affine: np.ndarray, other_affine: np.ndarray
) -> float:
    """The largest shift of a corner of an image along an axis of the world, in voxels.

    Args:
        shape: (x, y[, z]).
        affine: from voxels to mm, (4, 4).
        other_affine: the one that is compared with it.

    >>> measure_misplacement((9, 9), np.diag([2.0, 2.0, 1.0, 1.0]), np.diag([2.0, 2.5, 1.0, 1.0]))
    4.0
    """
    edges = [[0, size - 1] for size in [*shape, 1, 1][:3]]
    corners = np.array(np.meshgrid(*edges)).reshape(3, -1)
    here, there = (item[:3, :3] @ corners + item[:3, 3:] for item in (affine, other_affine))
    voxel = np.linalg.norm(affine[:3, :3], axis=0).min()
    return float(np.abs(here - there).max() / voxel)


def check_image(image: torch.Tensor, name: str) -> None:
    """Refuse an image whose voxels are not finite, or that is constant in a channel.

    Args:
        image: tensor of shape (C, *spatial).
        name: the case or file, for the message.

    Raises:
        ValueError: NaN or infinite voxels, or a channel with one value only.

    >>> check_image(torch.zeros(1, 4, 4), "blank.png")
    Traceback (most recent call last):
    ...
    ValueError: blank.png: channel 0 is constant (0.0 everywhere): leave the image out
    """
    values = image.as_subclass(torch.Tensor)
    # Of NaN among the values, both are NaN.
    bounds = [tuple(map(float, torch.aminmax(channel))) for channel in values]
    if not np.isfinite(bounds).all():
        num_bad = int(torch.logical_not(torch.isfinite(values)).sum())
        raise ValueError(f"{name}: {num_bad} voxels are NaN or infinite: repair or leave it out")
    for index, (low, high) in enumerate(bounds):
        if low == high:
            raise ValueError(
                f"{name}: channel {index} is constant ({low} everywhere): leave the image out"
            )


def check_read_image(
    data: dict[Hashable, Any], *, in_channels: int, spatial_dims: int
) -> dict[Hashable, Any]:
    """Refuse an image that the network was not made for; a transform of a case that was read.

    Args:
        data: ``image`` (C, *spatial), its intensities those of the file.
        in_channels: channels that the network takes.
        spatial_dims: axes of an image.

    Returns:
        The same dictionary.

    Raises:
        ValueError: what is wrong with which file.
    """
    image = data["image"]
    name = f"case {_name(image)}"
    if len(image) != in_channels:
        raise ValueError(
            f"{name}: the image has {len(image)} channels, and the network takes {in_channels}: "
            "convert the image"
        )
    if image.ndim - 1 != spatial_dims:
        raise ValueError(
            f"{name}: the image has {image.ndim - 1} dimensions, and the bundle reads images of "
            f"{spatial_dims}: leave it out"
        )
    check_image(image, name)
    return data


def check_read_label(data: dict[Hashable, Any], *, num_classes: int) -> dict[Hashable, Any]:
    """Refuse a label that does not belong to its image; a transform of a case that was read.

    Args:
        data: ``image`` (C, *spatial) and ``label`` (1, *spatial), on the grid of their files.
        num_classes: labels are 0 to ``num_classes - 1``.

    Returns:
        The same dictionary.

    Raises:
        ValueError: what is wrong with which case.
    """
    image, label = data["image"], data["label"]
    name = f"case {_name(label)}"
    if len(label) != 1:
        raise ValueError(f"{name}: the label has {len(label)} channels: save class indices as one")
    if image.shape[1:] != label.shape[1:]:
        raise ValueError(
            f"{name}: the image has shape {tuple(image.shape[1:])}, the label "
            f"{tuple(label.shape[1:])}: resample the label to the grid of its image"
        )
    distance = _measure_distance(image, label)
    if not distance < MAX_MISPLACEMENT:
        raise ValueError(
            f"{name}: the label lies {distance:.1f} voxels away from its image (their affines "
            "differ): resample the label to the grid of its image"
        )
    unknown = sorted({float(value) for value in label.unique()} - set(range(num_classes)))
    if unknown:
        raise ValueError(
            f"{name}: the label holds {', '.join(map(str, unknown[:5]))}, and the classes are 0 to "
            f"{num_classes - 1}: renumber the label"
        )
    return data


class ChannelReader(NibabelReader):
    """MONAI's reader of NIfTI files, for channels that lie a fraction of a voxel apart.

    MONAI refuses affines that differ by 1e-8. :func:`check_grids` has compared them before; here
    the first file's grid is that of all.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Read a file, or one per channel; channels take the header of the first."""
        found = super().read(data, **kwargs)
        if not isinstance(found, list):
            return found
        first = found[0]
        return [first, *(_moved(image, first) for image in found[1:])]


def _name(image: torch.Tensor) -> str:
    """The file that a tensor was read from, without its folder."""
    return os.path.basename(str(getattr(image, "meta", {}).get("filename_or_obj", "image")))


def _measure_distance(image: Any, label: Any) -> float:
    """How far a label lies from its image, in voxels; 0 unless both files are NIfTI.

    Only NIfTI says where an image lies. What the files say counts first: where spacing and affine
    of a header disagree, MONAI corrects the affine, of one file perhaps and not of the other.
    """
    paths = [str(item.meta.get("filename_or_obj")) for item in (image, label)]
    if not all(map(is_nifti, paths)):
        return 0.0
    shape = tuple(image.shape[1:])
    corrected = (item.affine.numpy() for item in (image, label))
    distance = measure_misplacement(shape, *corrected)
    if distance < MAX_MISPLACEMENT or not all(map(os.path.isfile, paths)):
        return distance
    stored: list[Any] = [nibabel.load(path) for path in paths]
    return measure_misplacement(shape, *(item.affine for item in stored))


def _moved(image: Any, first: Any) -> Any:
    """An image on the grid of another, its voxels still unread."""
    if np.array_equal(image.affine, first.affine):
        return image
    return type(image)(image.dataobj, first.affine, image.header)


def _files(value: Any) -> list[Any]:
    """Files under a key of a case."""
    if value is None:
        return []
    return [value] if isinstance(value, (str, os.PathLike)) else list(value)


def _find_nifti_problem(path: str) -> str | None:
    """As :func:`find_file_problem`, of a NIfTI file."""
    image: Any = nibabel.load(path)
    voxels = image.get_data_dtype()
    if voxels.fields or voxels.kind not in "biuf" or voxels.itemsize > 8:
        return f"its voxels are of type {voxels}: save real numbers of 64 bits at most"
    shape = tuple(int(size) for size in image.shape)
    if not all(shape):
        return f"its shape {shape} has an axis of no voxels: leave it out"
    if len(shape) not in (2, 3, 4):
        return (
            f"it has {len(shape)} axes, {shape}: save a volume for each channel (CASE_0000, "
            "CASE_0001, ...) or time point"
        )
    with ImageOpener(path) as file:  # as it stands: nibabel makes 0 mm 1 mm
        header = type(image.header).from_fileobj(file, check=False)
    spacing = header["pixdim"][1 : 1 + min(len(shape), 3)]
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        sizes = ", ".join(f"{size:g}" for size in spacing)
        return f"its voxels measure {sizes} mm (pixdim): repair the header"
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return "its affine says not where it lies (sform or qform): repair the header"
    return None


def _find_raster_problem(path: str, is_label: bool) -> str | None:
    """As :func:`find_file_problem`, of a PNG, JPG, TIFF or BMP file."""
    with Image.open(path) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            return f"it is a stack of {pages} pages: save each as an image"
        turned = image.getexif().get(_ORIENTATION, 1)
        if turned in range(2, 9):
            return (
                f"its EXIF orientation ({turned}) turns or flips it in some programs and not in "
                "others: save it upright"
            )
        if image.mode == "P" and is_label:
            return None
        if image.mode in ("P", "PA"):
            return "its colors are indices into a palette: save it as gray or RGB"
        if image.mode not in _MODES:
            return f"its pixels are {image.mode}: save it as gray or RGB"
        if image.format == "PNG":
            return _find_png_problem(path)
        return _find_tiff_problem(image) if image.format == "TIFF" else None


def _find_png_problem(path: str) -> str | None:
    """Pillow reads colors of 16 bits as 8."""
    with open(path, "rb") as file:
        head = file.read(26)
    depth, color_type = struct.unpack("BB", head[24:26])
    if depth == 16 and color_type != 0:
        return "its colors have 16 bits: save each channel as a gray file, or colors of 8 bits"
    return None


def _find_tiff_problem(image: Image.Image) -> str | None:
    """Pillow leaves channels out, and wraps or cuts some numbers."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    samples = int(tags.get(_SAMPLES, 1))
    bits = set(_values(tags.get(_BITS, 1)))
    kinds = set(_values(tags.get(_SAMPLE_FORMAT, _UNSIGNED)))
    if samples != len(image.getbands()):
        return (
            f"its pixels have {samples} samples, of which {len(image.getbands())} would be read: "
            "save each channel as a gray file"
        )
    if samples > 1 and bits != {8}:
        return "its colors have more than 8 bits: save each channel as a gray file"
    is_safe = (
        kinds == {_FLOAT}
        or (kinds == {_SIGNED} and bits <= {16, 32})
        or (kinds == {_UNSIGNED} and max(bits) <= 16)
    )
    if not is_safe:
        kind = {_UNSIGNED: "unsigned", _SIGNED: "signed"}.get(min(kinds), "unknown")
        return (
            f"its pixels are {kind} numbers of {max(bits)} bits, which are not read as they are: "
            "save them as unsigned 8 or 16 bits, or as float"
        )
    return None


def _values(value: Any) -> tuple[int, ...]:
    """A TIFF tag of one number or several."""
    return tuple(value) if isinstance(value, tuple) else (value,)
