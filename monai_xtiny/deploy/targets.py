"""What is to be segmented: files, folders within folders, a glob; and where each result goes."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from monai_xtiny.bundled.cases import group_channels
from monai_xtiny.data.cases import (
    NIFTI_SUFFIXES,
    RASTER_SUFFIXES,
    file_kind,
    file_stem,
    is_dicom,
    is_dicom_image,
    relative_name,
)
from monai_xtiny.data.masks import find_masks
from monai_xtiny.data.walk import check_file_name, check_regular, expand_glob, walk_once
from monai_xtiny.system.config_text import path_text


@dataclass(frozen=True)
class Target:
    """A case to segment.

    Args:
        name: relative path of its results, without an ending, with forward slashes.
        files: one or one per channel; the folder of a DICOM series.
        kind: ``nifti``, ``raster`` or ``dicom``.
    """

    name: str
    files: tuple[str, ...]
    kind: str

    @property
    def stem(self) -> str:
        """Name of its first file without the ending; of a series, of its folder."""
        name = os.path.basename(os.path.abspath(self.files[0]))
        return name if self.kind == "dicom" else file_stem(name)

    @property
    def ending(self) -> str:
        """Of its label file."""
        return ".png" if self.kind == "raster" else ".nii.gz"


@dataclass
class Targets:
    """What was found.

    Args:
        cases: to segment, sorted by name.
        problems: one line for each that cannot be.
    """

    cases: list[Target] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_targets(
    images: str | os.PathLike[str], *, reads: str, in_channels: int, without: Path | None = None
) -> Targets:
    """Find what there is to segment; no voxel is read.

    ``CASE_0000``, ``CASE_0001``, ... in one folder are the channels of a case, as in
    ``inference.json``. Of a folder without images of its own that has ``imagesTr``, this alone is
    entered. Folders are entered once, whatever links lead there.

    Args:
        images: a file, a folder, or a glob, whose matches may be folders of DICOM series.
        reads: what the bundle reads: ``volumes``, ``slices`` or ``images``.
        in_channels: channels of an image.
        without: folder that is not entered, that of the results.

    Raises:
        FileNotFoundError: nothing is there, or nothing there is an image of that kind.
        ValueError: masks lie among the images.
    """
    text = path_text(images, "images")
    root, folders = _list_files(text, without)
    endings = NIFTI_SUFFIXES if reads != "images" else (*NIFTI_SUFFIXES, *RASTER_SUFFIXES)
    found = Targets()
    for folder, names in folders.items():
        paths = [os.path.join(folder, name) for name in names]
        usable = [path for path in paths if path.lower().endswith(endings)]
        _add_files(found, usable, root, in_channels)
        others = [path for path in paths if file_kind(path) is None]
        if any(is_dicom_image(path) for path in others):
            _add_series(found, folder, root, reads)
    if not found.cases and not found.problems:
        raise FileNotFoundError(
            f"no image in {text!r}: this bundle reads {', '.join(endings)}"
            + ("" if reads == "images" else " and folders of DICOM series")
        )
    _refuse_masks_among(found.cases, text)
    found.cases = _without_clashes(found)
    return found


def _list_files(text: str, without: Path | None) -> tuple[Path, dict[str, list[str]]]:
    """Files by their folder, and the folder that names are relative to."""
    path = Path(text)
    if path.is_dir():
        has_images = any(file_kind(entry.name) for entry in os.scandir(path))
        if not has_images and (path / "imagesTr").is_dir():
            path = path / "imagesTr"
        return path, _walked(path, without)
    if path.exists():
        folder = os.path.dirname(text) or os.curdir
        if file_kind(text) is None:
            what = "give the folder of its series" if is_dicom(text) else "it is no image"
            raise ValueError(f"{text!r}: {what}")
        return Path(folder), {folder: [os.path.basename(text)]}
    if not glob.has_magic(text):
        raise FileNotFoundError(f"no such file or folder: {text!r}: check the path")
    root = Path(os.path.dirname(re.split(r"[*?\[]", text, maxsplit=1)[0]) or os.curdir)
    folders: dict[str, list[str]] = defaultdict(list)
    for match in expand_glob(text):
        if without is not None and without in Path(os.path.realpath(match)).parents:
            continue
        if os.path.isdir(match):
            for folder, names in _walked(Path(match), without).items():
                folders[folder] = names
        elif os.path.basename(match) not in folders[os.path.dirname(match) or os.curdir]:
            folders[os.path.dirname(match) or os.curdir].append(os.path.basename(match))
    if not folders:
        raise FileNotFoundError(f"nothing matches the pattern {text!r}: check it")
    return root, dict(folders)


def _walked(folder: Path, without: Path | None) -> dict[str, list[str]]:
    """Visible files below a folder, those of the results left out."""
    return {
        parent: names
        for parent, names in walk_once(folder)
        if without is None
        or without not in (Path(parent).resolve(), *Path(parent).resolve().parents)
    }


def _add_files(found: Targets, paths: Iterable[str], root: Path, in_channels: int) -> None:
    """The cases among the files of a folder."""
    named: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        try:
            check_file_name(relative_name(path, root))
            check_regular(path)
        except ValueError as error:
            found.problems.append(str(error))
            continue
        named[file_stem(os.path.basename(path))].append(path)
    for name in [name for name, same in named.items() if len(same) > 1]:
        twice = ", ".join(map(repr, named.pop(name)))
        found.problems.append(f"{twice} would have one result: rename or remove one")
    cases, unclear = group_channels({name: files[0] for name, files in named.items()}, in_channels)
    for name, files in cases.items():
        place = os.path.join(os.path.dirname(files[0]), name)
        if name in unclear:
            found.problems.append(
                f"{place!r}: {len(files)} files, not 1 or one for each of {in_channels} channels "
                "(CASE_0000, CASE_0001, ...): add what is missing"
            )
            continue
        target = Target(relative_name(place, root), tuple(files), file_kind(files[0]) or "")
        found.cases.append(target)


def _add_series(found: Targets, folder: str, root: Path, reads: str) -> None:
    """A folder with a DICOM series."""
    name = relative_name(folder, root)
    try:
        check_file_name(name)
    except ValueError as error:
        found.problems.append(str(error))
        return
    if reads == "images":
        found.problems.append(f"{folder!r}: a DICOM series, and the bundle reads 2D images")
        return
    here = os.path.basename(os.path.abspath(folder))
    found.cases.append(Target(here if name == "." else name, (folder,), "dicom"))


def _refuse_masks_among(cases: Iterable[Target], text: str) -> None:
    """Refuse images that are called as masks of others: nobody wants those segmented."""
    names = {relative_name(file, Path(os.curdir)): file for case in cases for file in case.files}
    masks = find_masks([name for name, file in names.items() if not os.path.isdir(file)])
    if masks:
        mask, image = next(iter(masks.items()))
        more = f" (and {len(masks) - 1} more likewise)" if len(masks) > 1 else ""
        raise ValueError(
            f"{mask!r} looks like a mask beside the image {image!r}{more}: give a glob for the "
            f"images alone, or move the masks out of {text!r}"
        )


def _without_clashes(found: Targets) -> list[Target]:
    """The cases whose results no other has."""
    owners: dict[str, list[Target]] = defaultdict(list)
    for case in found.cases:
        owners[case.name.casefold()].append(case)
    for same in owners.values():
        if len(same) > 1:
            twice = ", ".join(repr(case.files[0]) for case in same)
            found.problems.append(f"{twice} would have one result: rename or remove one")
    return sorted(
        (same[0] for same in owners.values() if len(same) == 1), key=lambda case: case.name
    )
