"""Unlabeled cases: found by name, looked at by header, and only the sampled ones read in full.

Axis order everywhere is MONAI's array order after RAS, (x, y[, z]); for PNG, JPG and TIFF
(width, height), as MONAI's ``PILReader`` gives it. Labels are never opened.
"""

from __future__ import annotations

import glob
import json
import os
import random
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, LoadImaged, MapTransform, Orientationd
from monai.transforms.utils import generate_spatial_bounding_box
from tqdm import tqdm

NIFTI_SUFFIXES = (".nii", ".nii.gz")
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".ima")
_READERS = {"nifti": "NibabelReader", "raster": "PILReader", "dicom": "PydicomReader"}
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """One patient's image, in one file or in one file a channel.

    Args:
        name: path of the first file (DICOM: of the folder) relative to where the search looked.
        images: the files, one a channel; for DICOM the folder of the series.
        kind: ``nifti``, ``raster`` (PNG, JPG, TIFF, BMP) or ``dicom``.
    """

    name: str
    images: tuple[str, ...]
    kind: str

    @property
    def reader(self) -> str:
        """Name of MONAI's reader for these files."""
        return _READERS[self.kind]


@dataclass(frozen=True)
class Sample:
    """Preprocessed images, ready to be scored.

    Args:
        names: of the cases, in the order of the images.
        images: plain tensors of one shape, (C, *patch_size).
        seconds: wall time that loading took.
    """

    names: tuple[str, ...]
    images: tuple[torch.Tensor, ...]
    seconds: float = 0.0


def find_cases(images: str | os.PathLike[str]) -> tuple[Case, ...]:
    """Find the cases of a folder, an nnU-Net data set, an MSD datalist, a DICOM tree or a glob.

    Only names are looked at: no image is opened, and no folder of labels is entered.

    Args:
        images: a folder of images, an nnU-Net data set root (``imagesTr`` with ``_0000`` channel
            suffixes), an MSD ``dataset.json``, a DICOM tree (a folder a series), one image, or a
            glob pattern.

    Returns:
        The cases, sorted by name.

    Raises:
        FileNotFoundError: nothing is there, or nothing there is an image.
        ValueError: the names contradict each other (channels missing, formats mixed, bad JSON).
    """
    text = os.fspath(images)
    path = Path(text)
    if path.is_dir():
        return _cases_in_folder(path)
    if path.is_file():
        if path.suffix.lower() == ".json":
            return _cases_of_datalist(path)
        if _kind_of(text) is None:
            raise ValueError(f"{text!r} is no image: expected {_formats()}, or a dataset.json")
        return _group_files([str(path)], path.parent, channel_suffixes=False)
    if glob.has_magic(text):
        fixed = re.split(r"[*?\[]", text, maxsplit=1)[0]
        root = Path(os.path.dirname(fixed) or os.curdir)
        files = [name for name in glob.glob(text, recursive=True) if _kind_of(name) is not None]
        if not files:
            raise FileNotFoundError(f"no image matches the pattern {text!r}: check it")
        return _group_files(files, root, channel_suffixes=None)
    raise FileNotFoundError(f"no such file or folder: {text!r}: check --images")


def sample_cases(
    cases: Sequence[Case], num_images: int | None = None, *, seed: int = 369
) -> tuple[Case, ...]:
    """Draw ``num_images`` cases without replacement, seeded, in the order of their names.

    Args:
        cases: all cases.
        num_images: how many to draw; ``None``, or more than there are, takes all.
        seed: of the draw; the global generators are not touched.

    Raises:
        ValueError: ``num_images`` is not positive.

    >>> cases = [Case(f"{i}.png", (f"{i}.png",), "raster") for i in range(5)]
    >>> [case.name for case in sample_cases(cases, 2)] == [c.name for c in sample_cases(cases, 2)]
    True
    """
    if num_images is None:
        return tuple(cases)
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}: give at least 1, or 'all'")
    if num_images >= len(cases):
        return tuple(cases)
    chosen = random.Random(seed).sample(range(len(cases)), num_images)
    return tuple(cases[index] for index in sorted(chosen))


def load_sample(
    cases: Sequence[Case],
    transform: Callable[[Mapping[Hashable, Any]], Any],
    *,
    progress: bool = True,
) -> Sample:
    """Load cases through a MONAI dictionary transform and check what comes out.

    Args:
        cases: the sampled cases; each goes into ``transform`` as ``{"image": its files}``.
        transform: MONAI transform; out comes ``{"image": tensor of shape (C, *patch_size)}``.
        progress: show a bar on stderr.

    Raises:
        ValueError: a case cannot be read, holds non-finite or constant values, or comes out of the
            transform in another shape than the first; the message names the case.
    """
    start = time.perf_counter()
    images: list[torch.Tensor] = []
    for case in tqdm(
        cases, desc="loading", unit="image", disable=None if progress else True, leave=False
    ):
        image = _load_case(case, transform).as_subclass(torch.Tensor)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"case {case.name!r} has shape {tuple(image.shape)} after the transforms, but "
                f"{cases[0].name!r} has {tuple(images[0].shape)}: crop and pad to one patch size"
            )
        images.append(image)
    names = tuple(case.name for case in cases)
    return Sample(names, tuple(images), time.perf_counter() - start)


def measure_nonzero(cases: Sequence[Case], *, progress: bool = True) -> tuple[tuple[int, ...], ...]:
    """Shape of the box around the voxels that are not 0 in every channel, as nnU-Net crops.

    Args:
        cases: read in full, one after the other.
        progress: show a bar on stderr.

    Returns:
        Voxels along each axis, (x, y[, z]) after RAS, one tuple a case.

    Raises:
        ValueError: a case cannot be read, or holds non-finite or constant values.
    """
    steps: list[Callable[..., Any]] = [
        LoadImaged("image", reader=cases[0].reader, ensure_channel_first=True)
    ]
    if cases[0].kind != "raster":
        steps.append(Orientationd("image", axcodes="RAS", labels=None))
    transform = Compose(steps)
    shapes = []
    for case in tqdm(
        cases, desc="planning", unit="image", disable=None if progress else True, leave=False
    ):
        image = _load_case(case, transform)
        start, end = generate_spatial_bounding_box(image, select_fn=lambda values: values != 0)
        shapes.append(tuple(int(high - low) for low, high in zip(start, end, strict=True)))
    return tuple(shapes)


def _load_case(case: Case, transform: Callable[[Mapping[Hashable, Any]], Any]) -> torch.Tensor:
    """One case through a transform, its errors naming the case; shape (C, *spatial)."""
    try:
        image = transform({"image": list(case.images)})["image"]
    except Exception as error:
        raise ValueError(
            f"case {case.name!r}: {root_cause(error)} ({case.images[0]}): "
            "repair the file or leave it out"
        ) from error
    check_image(image, f"case {case.name!r}")
    return image


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
    num_bad = int(torch.logical_not(torch.isfinite(image)).sum())
    if num_bad:
        raise ValueError(f"{name}: {num_bad} voxels are NaN or infinite: repair or leave it out")
    for index, channel in enumerate(image):
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            raise ValueError(
                f"{name}: channel {index} is constant ({low} everywhere): leave the image out"
            )


class CheckImaged(MapTransform):
    """Dictionary transform: refuse an image that no network should be scored on.

    Place it after ``LoadImaged``, where intensities are still those of the file.

    Args:
        keys: keys of the images, tensors of shape (C, *spatial).
        spatial_dims: required number of spatial dimensions; ``None`` takes any.
        in_channels: required number of channels; ``None`` takes any.
        allow_missing_keys: pass over a missing key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int | None = None,
        in_channels: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` unchanged, or raise the ``ValueError`` of :func:`check_image`."""
        for key in self.key_iterator(dict(data)):
            image = data[key]
            if self.spatial_dims is not None and image.ndim - 1 != self.spatial_dims:
                raise ValueError(
                    f"the image has {image.ndim - 1} spatial dimensions, not {self.spatial_dims}"
                )
            if self.in_channels is not None and image.shape[0] != self.in_channels:
                raise ValueError(
                    f"the image has {image.shape[0]} channels, the plan {self.in_channels}"
                )
            check_image(image, "the image")
        return dict(data)


def _cases_in_folder(folder: Path) -> tuple[Case, ...]:
    """Cases of an nnU-Net root, a folder of images, or a DICOM tree."""
    training = folder / "imagesTr"
    if training.is_dir():
        # MSD roots have imagesTr too, but without channel suffixes.
        files = _image_files(training)
        if not files:
            raise FileNotFoundError(f"no images in {str(training)!r}: expected {_formats()}")
        suffixed = (_CHANNEL_SUFFIX.match(_stem(os.path.basename(name))) for name in files)
        return _group_files(files, folder, channel_suffixes=all(suffixed))
    files = _image_files(folder)
    if files:
        return _group_files(files, folder, channel_suffixes=None)
    cases = _dicom_cases(folder)
    if cases:
        return cases
    raise FileNotFoundError(
        f"no images in {str(folder)!r}: expected {_formats()}, an imagesTr folder or DICOM series "
        "(ordinary images in sub-folders: give a glob)"
    )


def _cases_of_datalist(path: Path) -> tuple[Case, ...]:
    """Cases of an MSD dataset.json; an nnU-Net dataset.json stands for its folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is not JSON ({error}): give an MSD dataset.json"
        ) from error
    entries = content.get("training") if isinstance(content, dict) else None
    if entries is None and (path.parent / "imagesTr").is_dir():
        return _cases_in_folder(path.parent)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(path)!r} lists no images: it needs a 'training' list, as MSD has")
    cases = []
    for index, entry in enumerate(entries):
        image = entry.get("image") if isinstance(entry, dict) else entry
        names = [image] if isinstance(image, str) else image or None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{str(path)!r}: training[{index}] has no 'image' path")
        files = [os.path.normpath(path.parent / name) for name in names]
        kind = _kind_of(files[0]) or ("dicom" if os.path.isdir(files[0]) else None)
        if kind is None:
            raise ValueError(f"{str(path)!r}: {names[0]!r} is no image: expected {_formats()}")
        cases.append(Case(_relative(files[0], path.parent), tuple(files), kind))
    return _checked(list(dict.fromkeys(cases)))


def _group_files(
    files: Iterable[str], root: Path, *, channel_suffixes: bool | None
) -> tuple[Case, ...]:
    """Make cases of files; ``channel_suffixes=None`` looks whether ``_0000`` numbers channels."""
    files = sorted(files)
    if channel_suffixes is None:
        channel_suffixes = _numbers_channels(files)
    if not channel_suffixes:
        return _checked(
            [Case(_relative(name, root), (name,), _kind_of(name) or "") for name in files]
        )
    groups: dict[str, list[str]] = {}
    for name in files:
        match = _CHANNEL_SUFFIX.match(_stem(name))
        if match is None:
            raise ValueError(f"{name!r} lacks the channel suffix that the others have (_0000)")
        groups.setdefault(match["case"], []).append(name)
    for case, names in groups.items():
        expected = [f"{case}_{channel:04d}" for channel in range(len(names))]
        if [_stem(name) for name in names] != expected:
            raise ValueError(
                f"case {os.path.basename(case)!r}: the channel files are "
                f"{', '.join(os.path.basename(name) for name in names)}; "
                "expected _0000, _0001, ... once each"
            )
    return _checked(
        [
            Case(_relative(names[0], root), tuple(names), _kind_of(names[0]) or "")
            for names in groups.values()
        ]
    )


def _numbers_channels(files: Sequence[str]) -> bool:
    """Whether ``_0000`` at the end numbers channels: every file has it, every case starts at 0."""
    matches = [_CHANNEL_SUFFIX.match(_stem(name)) for name in files]
    cases = {match["case"] for match in matches if match}
    starts = {match["case"] for match in matches if match and match["channel"] == "0000"}
    # One group of many files is a numbered series (IMG_0000, IMG_0001, ...), not one case.
    return all(matches) and cases == starts and (len(cases) > 1 or len(files) == 1)


def _checked(cases: list[Case]) -> tuple[Case, ...]:
    """Sort cases; refuse mixed formats and differing channel files."""
    first = cases[0]
    for case in cases:
        if case.kind != first.kind:
            raise ValueError(
                f"{first.name!r} and {case.name!r} are of different formats: give a glob for one"
            )
        if len(case.images) != len(first.images):
            raise ValueError(
                f"case {case.name!r} has {len(case.images)} channel files, {first.name!r} has "
                f"{len(first.images)}: every case needs the same channels"
            )
    return tuple(sorted(cases, key=lambda case: case.name))


def _image_files(folder: Path) -> list[str]:
    """NIfTI and raster files of one folder, hidden ones left out."""
    with os.scandir(folder) as entries:
        return [
            entry.path
            for entry in entries
            if not entry.name.startswith(".") and _kind_of(entry.name) in ("nifti", "raster")
        ]


def _dicom_cases(folder: Path) -> tuple[Case, ...]:
    """One case a folder that holds DICOM files."""
    cases = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        visible = sorted(name for name in names if not name.startswith("."))
        if any(is_dicom(os.path.join(parent, name)) for name in visible):
            name = _relative(parent, folder)
            cases.append(Case(name if name != "." else folder.name, (parent,), "dicom"))
    return _checked(cases) if cases else ()


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM, by suffix or, without one, by its magic word."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():  # UIDs as names end in .123
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _kind_of(name: str) -> str | None:
    """Format family of a file name, by suffix."""
    lower = name.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        return "nifti"
    return "raster" if lower.endswith(RASTER_SUFFIXES) else None


def _stem(name: str) -> str:
    """File name without its image suffix; ``.nii.gz`` is one suffix."""
    return name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]


def _relative(path: str, root: Path) -> str:
    """Path relative to ``root``, with forward slashes."""
    prefix = f"{root}{os.sep}"
    # relpath takes a second for 100,000 files.
    short = path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root)
    return short.replace(os.sep, "/")


def _formats() -> str:
    """The file formats, for messages."""
    return ", ".join(suffix[1:] for suffix in (*NIFTI_SUFFIXES, *RASTER_SUFFIXES))


def root_cause(error: BaseException) -> str:
    """The innermost error's own words; MONAI wraps them in those of its transforms."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, ValueError) and first_line:
        return first_line
    return f"cannot be read, {type(error).__name__}: {first_line}"
