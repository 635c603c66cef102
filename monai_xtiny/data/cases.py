"""Unlabeled cases, found by name. No image is opened, and no folder of labels entered."""

from __future__ import annotations

import glob
import json
import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from monai_xtiny.data.case import Case
from monai_xtiny.system.config_text import path_text

NIFTI_SUFFIXES = (".nii", ".nii.gz")
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".ima")
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def find_cases(images: str | os.PathLike[str]) -> tuple[Case, ...]:
    """Find the cases of a folder, an nnU-Net data set, an MSD datalist, a DICOM tree or a glob.

    Only names are looked at: no image is opened, and no folder of labels is entered.

    Args:
        images: a folder of images, an nnU-Net data set root (``imagesTr`` with ``_0000`` channel
            suffixes), an MSD ``dataset.json``, a DICOM tree (one folder per series), one image, or
            a glob pattern.

    Returns:
        The cases, sorted by name.

    Raises:
        FileNotFoundError: nothing is there, or nothing there is an image.
        ValueError: the names contradict each other (channels missing, formats mixed, bad JSON).
    """
    text = path_text(images, "images")
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
    """One case per folder that holds DICOM files."""
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
