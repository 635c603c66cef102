"""Unlabeled cases, found by name. No image is read, and no folder of labels entered."""

from __future__ import annotations

import glob
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from monai_xtiny.data.case import Case
from monai_xtiny.data.masks import find_masks, suggest_glob
from monai_xtiny.data.walk import check_file_name, check_regular, expand_glob, walk_once
from monai_xtiny.system.config_text import path_text

NIFTI_SUFFIXES = (".nii", ".nii.gz")
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".ima")
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
# DICOM objects that are no image, by their SOP class: directories, raw data, registrations,
# segmentations, reports, presentation states, documents, waveforms, and those of radiotherapy but
# its images.
_NO_IMAGE = re.compile(
    rb"1\.2\.840\.10008\.(?:1\.3\.10"
    rb"|5\.1\.4\.1\.1\.(?:(?:66|67|88|11|104|9)(?:\..+)?|481\.(?!1$).+))"
)


def find_cases(images: str | os.PathLike[str]) -> tuple[Case, ...]:
    """Find the cases of a folder, an nnU-Net data set, an MSD datalist, a DICOM tree or a glob.

    Only names are looked at: no image is read, and no folder of labels is entered. Of DICOM trees
    the first 2 KB of files are read, to leave out objects that are no images.

    Args:
        images: a folder of images, an nnU-Net data set root (``imagesTr`` with ``_0000`` channel
            suffixes), an MSD ``dataset.json``, a DICOM tree (one folder per series), one image, or
            a glob pattern.

    Returns:
        The cases, sorted by name.

    Raises:
        FileNotFoundError: nothing is there, or nothing there is an image.
        ValueError: the names contradict each other (channels missing, formats mixed, a case in two
            files, masks beside images, bad JSON), or a text file could not hold them.
    """
    text = path_text(images, "images")
    path = Path(text)
    if path.is_dir():
        return _cases_in_folder(path)
    if path.is_file():
        if path.suffix.lower() == ".json":
            return _cases_of_datalist(path)
        if file_kind(text) is None:
            raise ValueError(f"{text!r} is no image: expected {list_formats()}, or a dataset.json")
        return _group_files([str(path)], path.parent, channel_suffixes=False)
    if glob.has_magic(text):
        fixed = re.split(r"[*?\[]", text, maxsplit=1)[0]
        root = Path(os.path.dirname(fixed) or os.curdir)
        files = [name for name in expand_glob(text) if file_kind(name) is not None]
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
        files = _names_of_images(training)
        if not files:
            raise FileNotFoundError(f"no images in {str(training)!r}: expected {list_formats()}")
        _refuse_dicom_beside(files[0], training)
        suffixed = (_CHANNEL_SUFFIX.match(file_stem(os.path.basename(name))) for name in files)
        return _group_files(files, folder, channel_suffixes=all(suffixed))
    files = _names_of_images(folder)
    if files:
        _refuse_dicom_beside(files[0], folder)
        return _group_files(files, folder, channel_suffixes=None)
    cases = _dicom_cases(folder)
    if cases:
        return cases
    raise FileNotFoundError(
        f"no images in {str(folder)!r}: expected {list_formats()}, an imagesTr folder or DICOM "
        "series (ordinary images in sub-folders: give a glob)"
    )


def _cases_of_datalist(path: Path) -> tuple[Case, ...]:
    """Cases of an MSD dataset.json; an nnU-Net dataset.json stands for its folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
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
        files = [_listed_path(path.parent, name) for name in names]
        kind = file_kind(files[0]) or ("dicom" if os.path.isdir(files[0]) else None)
        if kind is None:
            raise ValueError(f"{str(path)!r}: {names[0]!r} is no image: expected {list_formats()}")
        cases.append(Case(relative_name(files[0], path.parent), tuple(files), kind))
    return _checked(list(dict.fromkeys(cases)), path.parent)


def _listed_path(root: Path, name: str) -> str:
    """Path of a datalist's entry, which may have been written under Windows."""
    path = os.path.normpath(root / name)
    if "\\" in name and not os.path.lexists(path):
        return os.path.normpath(root / name.replace("\\", "/"))
    return path


def _group_files(
    files: Iterable[str], root: Path, *, channel_suffixes: bool | None
) -> tuple[Case, ...]:
    """Make cases of files; ``channel_suffixes=None`` looks whether ``_0000`` numbers channels."""
    files = sorted(files)
    if channel_suffixes is None:
        channel_suffixes = _numbers_channels(files)
    if not channel_suffixes:
        return _checked(
            [Case(relative_name(name, root), (name,), file_kind(name) or "") for name in files],
            root,
        )
    groups: dict[str, list[str]] = {}
    for name in files:
        match = _CHANNEL_SUFFIX.match(file_stem(name))
        if match is None:
            raise ValueError(f"{name!r} lacks the channel suffix that the others have (_0000)")
        groups.setdefault(match["case"], []).append(name)
    for case, names in groups.items():
        expected = [f"{case}_{channel:04d}" for channel in range(len(names))]
        if [file_stem(name) for name in names] != expected:
            raise ValueError(
                f"case {os.path.basename(case)!r}: the channel files are "
                f"{', '.join(os.path.basename(name) for name in names)}; "
                "expected _0000, _0001, ... once each"
            )
    return _checked(
        [
            Case(relative_name(names[0], root), tuple(names), file_kind(names[0]) or "")
            for names in groups.values()
        ],
        root,
    )


def _numbers_channels(files: Sequence[str]) -> bool:
    """Whether ``_0000`` at the end numbers channels: every file has it, every case starts at 0."""
    matches = [_CHANNEL_SUFFIX.match(file_stem(name)) for name in files]
    cases = {match["case"] for match in matches if match}
    starts = {match["case"] for match in matches if match and match["channel"] == "0000"}
    # One group of many files is a numbered series (IMG_0000, IMG_0001, ...), not one case.
    return all(matches) and cases == starts and (len(cases) > 1 or len(files) == 1)


def _checked(cases: list[Case], root: Path) -> tuple[Case, ...]:
    """Sort cases; refuse mixed formats, differing channel files, masks and a case found twice."""
    first = cases[0]
    stems: dict[str, str] = {}
    for case in cases:
        check_file_name(case.name)
        if case.kind != first.kind:
            raise ValueError(
                f"{first.name!r} and {case.name!r} are of different formats: give a glob for one"
            )
        if len(case.images) != len(first.images):
            raise ValueError(
                f"case {case.name!r} has {len(case.images)} channel files, {first.name!r} has "
                f"{len(first.images)}: every case needs the same channels"
            )
        for file in case.images if case.kind != "dicom" else ():
            other = stems.setdefault(file_stem(file), file)
            if other != file:
                raise ValueError(
                    f"{other!r} and {file!r} would be one case: remove or rename one of them"
                )
    if first.kind != "dicom":
        _refuse_masks([case.name for case in cases], root)
    return tuple(sorted(cases, key=lambda case: case.name))


def _refuse_masks(names: list[str], root: Path) -> None:
    """Refuse images that are called as masks of others: labels are never read."""
    masks = find_masks(names)
    if not masks:
        return
    mask, image = next(iter(masks.items()))
    others = f" (and {len(masks) - 1} more likewise)" if len(masks) > 1 else ""
    pattern = suggest_glob(str(root), [name for name in names if name not in masks], list(masks))
    advice = (
        "move the masks into a folder of their own"
        if pattern is None
        else f"give a glob for the images alone, {pattern!r}"
    )
    raise ValueError(
        f"{mask!r} looks like a mask beside the image {image!r}{others}, and labels are never "
        f"read: {advice}"
    )


def _names_of_images(folder: Path) -> list[str]:
    """NIfTI and raster files of one folder, hidden ones left out."""
    with os.scandir(folder) as entries:
        return [
            entry.path
            for entry in entries
            if not entry.name.startswith(".") and file_kind(entry.name) in ("nifti", "raster")
        ]


def _dicom_cases(folder: Path) -> tuple[Case, ...]:
    """One case per folder that holds a DICOM image."""
    cases = []
    for parent in _dicom_folders(folder):
        for name in os.listdir(parent):
            check_regular(os.path.join(parent, name))
        name = relative_name(parent, folder)
        cases.append(Case(name if name != "." else folder.name, (parent,), "dicom"))
    return _checked(cases, folder) if cases else ()


def _dicom_folders(folder: Path) -> Iterator[str]:
    """Folders that hold a DICOM image; other DICOM objects alone make no case."""
    for parent, names in walk_once(folder):
        others = [name for name in names if file_kind(name) is None]
        if any(is_dicom_image(os.path.join(parent, name)) for name in others):
            yield parent


def _refuse_dicom_beside(file: str, folder: Path) -> None:
    """Refuse a folder that holds both images and DICOM series: which are the data?"""
    series = next(_dicom_folders(folder), None)
    if series is not None:
        ending = file[len(file_stem(file)) :]
        pattern = os.path.join(glob.escape(str(folder)), f"*{ending}")
        raise ValueError(
            f"{file!r} lies beside DICOM images, in {series!r}: give a glob for the one, "
            f"{pattern!r}, or move the other out"
        )


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM, by suffix or, without one, by its magic word."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():  # UIDs as names end in .123
        return False
    return has_dicom_magic(path)


def has_dicom_magic(path: str) -> bool:
    """Whether a file begins as DICOM does, whatever its name."""
    return _first_bytes(path, 132)[128:] == b"DICM"


def is_dicom_image(path: str) -> bool:
    """Whether a file is DICOM, and no directory, structure set, report or the like."""
    if not is_dicom(path):
        return False
    # (0002,0002) of the file's meta information, which is always written in this one way.
    _, tag, value = _first_bytes(path, 2048).partition(b"\x02\x00\x02\x00UI")
    length = int.from_bytes(value[:2], "little")
    return not (tag and _NO_IMAGE.fullmatch(value[2 : 2 + length].rstrip(b"\0 ")))


def _first_bytes(path: str, count: int) -> bytes:
    """The beginning of a file; nothing of what is no file or cannot be read."""
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            return b""
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def file_kind(name: str) -> str | None:
    """Format family of a file name, by suffix."""
    lower = name.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        return "nifti"
    return "raster" if lower.endswith(RASTER_SUFFIXES) else None


def file_stem(name: str) -> str:
    """File name without its image suffix; ``.nii.gz`` is one suffix."""
    return name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]


def relative_name(path: str, root: Path) -> str:
    """Path relative to ``root``, with forward slashes."""
    prefix = f"{root}{os.sep}"
    # relpath takes a second for 100,000 files.
    short = path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root)
    return short.replace(os.sep, "/")


def list_formats() -> str:
    """The file formats, for messages."""
    return ", ".join(suffix[1:] for suffix in (*NIFTI_SUFFIXES, *RASTER_SUFFIXES))
