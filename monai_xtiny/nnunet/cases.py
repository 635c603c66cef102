"""Images of an nnU-Net data set as its network sees them; no label is opened.

nnU-Net's arrays are (C, z, y, x) with the axes of ``transpose_forward``; what leaves this module is
in MONAI's array order (C, x, y[, z]), as the plan is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import CenterSpatialCropd, Compose, LoadImage, SpatialPadd
from numpy.typing import NDArray

from monai_xtiny.bundled.gate import check_files
from monai_xtiny.bundled.nnunet_preprocessing import (
    Preprocessing,
    image_spacing,
    in_nnunet_order,
    preprocess,
    read_preprocessing,
)
from monai_xtiny.data.case import Case
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.images import MiddleSliced, image_reader
from monai_xtiny.nnunet.folders import NnunetDataSet
from monai_xtiny.plan.unet_plan import UNetPlan

# From nnU-Net 2.6 on; before it; unpacked.
_SUFFIXES = (".b2nd", ".npz", ".npy")
_RESAMPLING = "resample_data_or_seg_to_shape"
_READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO")
Images = Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]]


def find_nnunet_images(
    data_set: NnunetDataSet, plans: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[tuple[Case, ...], Images]:
    """Cases of a data set, and what reads one as nnU-Net's network sees it.

    Preprocessed cases are taken where they are there, so that nothing is resampled twice; raw
    images otherwise.

    Args:
        data_set: its folders.
        plans: the plans file.
        settings: of the configuration, inherited ones included.

    Returns:
        The cases, sorted by name; and a dictionary transform, ``{"image": files}`` to ``{"image":
        tensor of shape (C, x, y, z)}``, preprocessed.

    Raises:
        FileNotFoundError: there are neither preprocessed nor raw images.
        ValueError: the raw images are none that can be preprocessed here.
        ImportError: the cases cannot be read without blosc2.
    """
    order = [int(axis) for axis in plans["transpose_forward"]]
    folder = data_set.preprocessed / str(settings["data_identifier"])
    cases = find_preprocessed(folder)
    missing = _missing_package(cases)
    if cases and missing is None:
        return cases, _Reading(lambda files: read_preprocessed(files[0]), order)
    if data_set.raw is not None:
        _check_raw(data_set, plans, settings)
        processing = _processing(data_set, plans, settings)
        return find_cases(data_set.raw), _Reading(lambda f: _read_raw(f, processing), order)
    if missing is not None:
        raise ImportError(missing)
    raise FileNotFoundError(
        f"no preprocessed cases in {str(folder)!r}, and nnUNet_raw does not lead to "
        f"{data_set.name}: nnUNetv2_preprocess -d {data_set.number}, or set nnUNet_raw"
    )


def find_preprocessed(folder: str | os.PathLike[str]) -> tuple[Case, ...]:
    """Preprocessed cases in a folder of nnU-Net's, in any of its formats; none without the folder.

    Args:
        folder: ``nnUNetPlans_2d`` for example.
    """
    by_suffix: dict[str, dict[str, Path]] = {suffix: {} for suffix in _SUFFIXES}
    path = Path(folder)
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.suffix in by_suffix and not file.stem.endswith("_seg"):
            by_suffix[file.suffix][file.stem] = file
    found = next((files for files in by_suffix.values() if files), {})
    return tuple(Case(name, (str(file),), "nnunet") for name, file in sorted(found.items()))


def read_preprocessed(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The image of a preprocessed case, (C, *spatial) in nnU-Net's order; no pickle is read.

    Raises:
        ValueError: it is no such image.
    """
    file = os.fspath(path)
    if file.endswith(".b2nd"):
        import blosc2

        data = np.asarray(blosc2.open(urlpath=file, mode="r")[:])
    else:
        loaded = np.load(file, allow_pickle=False)
        data = loaded if isinstance(loaded, np.ndarray) else loaded["data"]
    if data.ndim != 4 or not np.issubdtype(data.dtype, np.floating):
        raise ValueError(f"it holds {data.dtype} of shape {data.shape}, not nnU-Net's (C, z, y, x)")
    return data.astype(np.float32)


def patch_transform(
    images: Images, plan: UNetPlan, transpose_forward: Sequence[int]
) -> Callable[[Mapping[Hashable, Any]], Any]:
    """What a case becomes for scoring: the patch in the middle, of the middle slice in 2D.

    Args:
        images: of :func:`find_nnunet_images`.
        plan: of the network.
        transpose_forward: of nnU-Net's plans; its first axis is that of the slices.
    """
    slices: list[Callable[..., Any]] = []
    if plan.spatial_dims == 2:  # 2D images are volumes of one slice
        slices.append(MiddleSliced("image", 2 - transpose_forward[0], plan.patch_size))
    return Compose(
        [
            images,
            *slices,
            CenterSpatialCropd("image", plan.patch_size),
            SpatialPadd("image", plan.patch_size),
        ]
    )


def turn_image(image: NDArray[np.float32], transpose_forward: Sequence[int]) -> torch.Tensor:
    """Bring nnU-Net's transposed (C, z, y, x) to (C, x, y, z).

    >>> turn_image(np.zeros((1, 4, 3, 2), np.float32), (1, 0, 2)).shape  # (C, y, z, x)
    torch.Size([1, 2, 4, 3])
    """
    axes = sorted(range(3), key=lambda axis: transpose_forward[axis], reverse=True)
    turned = image.transpose(0, *(axis + 1 for axis in axes))
    return torch.from_numpy(np.ascontiguousarray(turned))


class _Reading:
    """Dictionary transform: read a case and turn it.

    Args:
        read: files to nnU-Net's array.
        transpose_forward: of the plans.
    """

    def __init__(
        self, read: Callable[[list[str]], NDArray[np.float32]], transpose_forward: Sequence[int]
    ) -> None:
        self.read, self.transpose_forward = read, tuple(transpose_forward)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``{"image": tensor (C, x, y, z)}``."""
        image = self.read(list(data["image"]))
        return {**data, "image": turn_image(image, self.transpose_forward)}


def _read_raw(files: list[str], processing: Preprocessing) -> NDArray[np.float32]:
    """A case of ``imagesTr``, preprocessed as nnU-Net does."""
    check_files({"image": files})
    case = Case("", tuple(files), _kind_of_file(files[0]))
    image = LoadImage(image_reader(case), image_only=True, ensure_channel_first=True)(files)
    return preprocess(in_nnunet_order(image), image_spacing(image), processing)[0]


def _kind_of_file(file: str) -> str:
    """The kind of an image file: NIfTI, or one of the formats of 2D images."""
    return "nifti" if file.lower().endswith((".nii", ".nii.gz")) else "raster"


def _check_raw(
    data_set: NnunetDataSet, plans: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuse raw images that nnU-Net reads or resamples otherwise than this package."""
    reader = plans.get("image_reader_writer")
    resampling = settings.get("resampling_fn_data", _RESAMPLING)
    others = [f"reads its images by {reader}"] * (reader not in _READERS)
    others += [f"resamples them by {resampling}"] * (resampling != _RESAMPLING)
    if others:
        raise ValueError(
            f"{data_set.name} is not preprocessed, and nnU-Net {' and '.join(others)}, which is "
            f"not supported: nnUNetv2_preprocess -d {data_set.number}, and pip install blosc2"
        )


def _processing(
    data_set: NnunetDataSet, plans: Mapping[str, Any], settings: Mapping[str, Any]
) -> Preprocessing:
    """How raw images are preprocessed; refused where it is not as nnU-Net's own planner says."""
    try:
        return read_preprocessing(plans, settings)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        lacking = "lacks " if isinstance(error, KeyError) else ""
        raise ValueError(
            f"{data_set.name} is not preprocessed, and cannot be by its plans in "
            f"{str(data_set.preprocessed)!r} ({lacking}{error}): nnUNetv2_preprocess -d "
            f"{data_set.number}, and pip install blosc2"
        ) from error


def _missing_package(cases: Sequence[Case]) -> str | None:
    """What must be installed to read preprocessed cases, if anything."""
    if not cases or not cases[0].images[0].endswith(".b2nd"):
        return None
    try:
        import blosc2  # noqa: F401
    except ImportError:
        return (
            f"{cases[0].images[0]!r} is a file of blosc2, which is not installed: "
            "pip install blosc2, or set nnUNet_raw"
        )
    return None
