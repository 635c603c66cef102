# Written by monai_xtiny 0.2.0, which need not be installed.
"""One gate for every image: what is read, and what is refused in a line.

The search imports this file; every bundle carries a copy as ``scripts/gate.py``, which its
configs load by path. So training, validation, inference and evaluation accept and refuse the same
files as the search, by the same rules. It imports NumPy, nibabel and Pillow alone, so that
``segment`` starts without PyTorch. Where a file could be read in more than one way, it is refused:
a wrong guess would go unnoticed.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from PIL import Image

if TYPE_CHECKING:
    import torch

# Voxels of an image, on the CPU.
Voxels: TypeAlias = "torch.Tensor | np.ndarray"
# Images, or an image and its label, further from each other than this, in voxels, are of two grids.
MAX_MISPLACEMENT = 0.1
# Values beyond make all others one in float32, once they are normalized.
LARGEST = 1e15

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


def inspect_file(path: str | os.PathLike[str], *, is_label: bool = False) -> Any:
    """Open a file once and refuse it if it cannot be read safely; no voxel is read.

    Args:
        path: NIfTI, PNG, JPG, TIFF or BMP by its ending; of other files only their kind is judged.
        is_label: the file holds class indices, which may be those of a palette.

    Returns:
        nibabel's image, whose voxels are not the file's, or Pillow's, closed; ``None`` for others.

    Raises:
        ValueError: what is wrong, and what to do; the message does not name the file.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror}): check the path") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is a DICOM series
        raise ValueError("it is a pipe, socket or device, no file: remove it")
    lower = name.lower()
    found, problem = None, None
    try:
        if lower.endswith(_NIFTI):
            header = _read_nifti_header(name)
            problem = _find_nifti_problem(header)
            found = _as_image(header) if problem is None else None
            problem = problem or _find_turned_axes(found)
        elif lower.endswith(_RASTER):
            with Image.open(name) as found:
                problem = _find_raster_problem(found, is_label=is_label)
    except Exception as error:
        # Readers have errors of their own for damaged files.
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it cannot be read ({text}): repair it or leave it out") from error
    if problem is not None:
        raise ValueError(problem)
    return found


def check_image_files(data: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """As :func:`check_files`, of the image alone: a server's ``label`` may be a word."""
    check_files({"image": data.get("image")})
    return data


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
        paths = _paths(data.get(key))
        opened = []
        for path in paths:
            try:
                opened.append(inspect_file(path, is_label=key == "label"))
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)!r}: {error}") from error
        check_grids(paths, opened)
    return data


def check_grids(paths: Sequence[str | os.PathLike[str]], images: Sequence[Any]) -> None:
    """Refuse channels of a case that do not lie on one grid.

    Args:
        paths: one file per channel.
        images: what :func:`inspect_file` gave of each.

    Raises:
        ValueError: one has another shape, or lies 0.1 voxel or more away from the first.
    """
    if len(paths) < 2 or not all(map(is_nifti, paths)):
        return
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


def check_image(image: Voxels, name: str) -> None:
    """Refuse an image whose voxels are not finite, or that is constant in a channel.

    Args:
        image: of shape (C, *spatial).
        name: the case or file, for the message.

    Raises:
        ValueError: NaN or infinite voxels, or a channel with one value only.

    >>> check_image(np.zeros((1, 4, 4)), "blank.png")
    Traceback (most recent call last):
    ...
    ValueError: blank.png: channel 0 is constant (0.0 everywhere): leave the image out
    """
    values = np.asarray(image)
    # Of NaN among the values, both are NaN.
    bounds = [(float(channel.min()), float(channel.max())) for channel in values]
    if not np.isfinite(bounds).all():
        num_bad = int(np.logical_not(np.isfinite(values)).sum())
        raise ValueError(f"{name}: {num_bad} voxels are NaN or infinite: repair or leave it out")
    for index, (low, high) in enumerate(bounds):
        if max(-low, high) > LARGEST:
            raise ValueError(
                f"{name}: channel {index} reaches from {low:g} to {high:g}, beside which nothing "
                "else can be told apart: replace such values (no data?), or leave the image out"
            )
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
    check_fit(image, f"case {_name(image)}", in_channels=in_channels, spatial_dims=spatial_dims)
    return data


def check_fit(image: Voxels, name: str, *, in_channels: int, spatial_dims: int) -> None:
    """Refuse voxels that a network was not made for.

    Args:
        image: (C, *spatial), its intensities those of the file.
        name: the case, for the message.
        in_channels: channels that the network takes.
        spatial_dims: axes of an image.

    Raises:
        ValueError: what is wrong.
    """
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


def settle_affine(image: Any) -> Any:
    """Let spacing (pixdim) and affine of a NIfTI image agree, as MONAI's readers do.

    It is ``monai.data.utils.correct_nifti_header_if_necessary`` without PyTorch, for the affine
    alone: where sform or qform does not fit pixdim and the other one does, that one counts.

    Args:
        image: nibabel's, whose sform or qform may change.

    Returns:
        The same image.
    """
    header, rank = image.header, int(image.header["dim"][0])
    spacing = np.asarray(header.get_zooms())[:rank]

    def fits(affine: np.ndarray) -> bool:
        lengths = np.sqrt(np.square(np.asarray(affine, dtype=float)[:rank, :rank]).sum(axis=0))
        lengths[lengths == 0] = 1.0
        return np.allclose(lengths, spacing)

    if rank >= 5 or fits(image.affine):
        return image
    fits_sform, fits_qform = fits(image.get_sform()), fits(image.get_qform())
    if header["sform_code"] != 0 and (fits_sform or fits_qform):
        if not fits_sform:
            image.set_sform(image.get_qform())
    elif header["qform_code"] != 0 and fits_sform and not fits_qform:
        image.set_qform(image.get_sform())
    return image


def _name(image: Voxels) -> str:
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


def _paths(value: Any) -> list[Any]:
    """Files under a key of a case."""
    if value is None:
        return []
    return [value] if isinstance(value, (str, os.PathLike)) else list(value)


def _read_nifti_header(path: str) -> Any:
    """The header of a NIfTI file as it stands; nibabel would mend it, and make 0 mm 1 mm."""
    with ImageOpener(path) as file:
        content = file.read(nibabel.Nifti2Header.sizeof_hdr)
    sizes = {struct.unpack(order + "i", content[:4])[0] for order in "<>"}
    kind: Any = nibabel.Nifti1Header
    if nibabel.Nifti2Header.sizeof_hdr in sizes:
        kind = nibabel.Nifti2Header
    elif kind.sizeof_hdr not in sizes:
        raise ValueError("not a NIfTI file")
    header = kind(content[: kind.sizeof_hdr], check=False)
    if header["magic"].item().rstrip(b"\0\r\n\x1a") != header.single_magic.rstrip(b"\0\r\n\x1a"):
        raise ValueError("not a NIfTI file with its voxels")
    return header


def _as_image(header: Any) -> Any:
    """An image with a header; its voxels are none."""
    is_second = isinstance(header, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Image if is_second else nibabel.Nifti1Image
    voxels = np.broadcast_to(np.uint8(0), header.get_data_shape())
    return kind(voxels, header.get_best_affine(), header)


def _find_nifti_problem(header: Any) -> str | None:
    """What keeps a NIfTI file from being read safely."""
    voxels = header.get_data_dtype()
    if voxels.fields or voxels.kind not in "biuf" or voxels.itemsize > 8:
        return f"its voxels are of type {voxels}: save real numbers of 64 bits at most"
    shape = tuple(int(size) for size in header.get_data_shape())
    if not all(shape):
        return f"its shape {shape} has an axis of no voxels: leave it out"
    if len(shape) not in (2, 3, 4):
        return (
            f"it has {len(shape)} axes, {shape}: save a volume for each channel (CASE_0000, "
            "CASE_0001, ...) or time point"
        )
    spacing = header["pixdim"][1 : 1 + min(len(shape), 3)]
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        sizes = ", ".join(f"{size:g}" for size in spacing)
        return f"its voxels measure {sizes} mm (pixdim): repair the header"
    axes = header.get_best_affine()[:3]
    volume = np.linalg.norm(axes[:, :3], axis=0).prod()  # of a voxel, were its edges upright
    if not np.isfinite(axes).all() or abs(np.linalg.det(axes[:, :3])) <= 1e-6 * volume:
        return "its affine says not where it lies (sform or qform): repair the header"
    return None


def _find_turned_axes(image: Any) -> str | None:
    """Where spacing and sform disagree, MONAI may take a qform that the header calls unset."""
    found = image.affine[:3, :3]
    taken = settle_affine(_as_image(image.header.copy())).affine[:3, :3]
    directions = [axes / np.linalg.norm(axes, axis=0) for axes in (found, taken)]
    if np.abs(directions[0] - directions[1]).max() < 1e-3:
        return None
    return "its spacing (pixdim) and its sform disagree, and its qform points elsewhere: repair it"


def _find_raster_problem(image: Image.Image, *, is_label: bool) -> str | None:
    """What keeps a PNG, JPG, TIFF or BMP file from being read safely."""
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        return f"it is a stack of {pages} pages: save each as an image"
    turned = _find_orientation(image)
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
        return _find_png_problem(image)
    return _find_tiff_problem(image) if image.format == "TIFF" else None


def _find_orientation(image: Any) -> int:
    """EXIF's number, 1 for upright; Pillow's own ``getexif`` would read all pixels of a PNG."""
    if image.format == "TIFF":
        return int(image.tag_v2.get(_ORIENTATION, 1))
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except Exception:  # damaged, so that no program turns the image by it
        return 1
    return int(exif.get(_ORIENTATION, 1))


def _find_png_problem(image: Any) -> str | None:
    """Pillow reads colors of 16 bits as 8."""
    position = image.fp.tell()
    image.fp.seek(24)
    depth, color_type = struct.unpack("BB", image.fp.read(2))
    image.fp.seek(position)
    if depth == 16 and color_type != 0:
        return "its colors have 16 bits: save each channel as a gray file, or colors of 8 bits"
    return None


def _find_tiff_problem(image: Any) -> str | None:
    """Pillow leaves channels out, and wraps or cuts some numbers."""
    tags = image.tag_v2
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
