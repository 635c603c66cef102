# Written by monai_xtiny 0.2.0, which need not be installed.
"""Find the cases of a folder or of a datalist."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .masks import masks_among, refuse_mask_files

if TYPE_CHECKING:  # it imports PyTorch
    from .files import PathLike

# What MONAI's datasets take: "image", one file or one per channel, and "label", a file.
Case: TypeAlias = dict[str, Any]
# Cases that a message names.
NAMED = 5
# No text file holds these: control characters, and bytes that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class LabeledCases:
    """The labeled cases of a data set, and what in its folders fits no case.

    Args:
        source: the folder or datalist, as the user gave it.
        cases: to be split into training and validation.
        validation: those that a datalist keeps for validation.
        unmatched: names of cases that have neither one image nor one per channel.
        unlabeled: images of no case.
        duplicates: files with the name of another, but for the ending.
        test: labeled cases of a datalist's test section, which training leaves alone.
    """

    source: str
    cases: list[Case]
    validation: list[Case]
    unmatched: dict[str, Case]
    unlabeled: list[str]
    duplicates: list[str]
    test: list[Case] = field(default_factory=list)

    @property
    def every(self) -> list[Case]:
        """The labeled cases of all sections."""
        return [*self.cases, *self.validation, *self.test]


@dataclass(frozen=True)
class ImageCases:
    """The cases of a folder of images, to label.

    Args:
        folder: as the user gave it.
        cases: files by the name of the case, one or one per channel.
        unclear: names of cases that have neither one file nor one per channel.
        duplicates: files with the name of another, but for the ending.
        masks: files that are called as the mask of another.
    """

    folder: str
    cases: dict[str, list[str]]
    unclear: list[str]
    duplicates: list[str]
    masks: list[str] = field(default_factory=list)

    @property
    def data(self) -> list[Case]:
        """The cases that are clear, as MONAI's datasets take them."""
        return [{"image": files} for case, files in self.cases.items() if case not in self.unclear]

    @property
    def output_ext(self) -> str:
        """Ending of label files: NIfTI's where there is a NIfTI image, else PNG."""
        files = [file for files in self.cases.values() for file in files]
        return ".nii.gz" if any(map(_is_nifti, files)) else ".png"

    def name_output(self, meta: Mapping[str, Any], _saver: object) -> dict[str, Any]:
        """``output_name_formatter`` of ``SaveImaged``: a label is called as its case."""
        # SaveImage cuts off one ending.
        names = {files[0]: case + ".nii" for case, files in self.cases.items()}
        file = meta["filename_or_obj"]
        return {"subject": names.get(file, file)}


def find_labeled_cases(
    dataset_dir: PathLike,
    datalist: PathLike | None,
    data_root: PathLike,
    *,
    file_endings: Sequence[str],
    in_channels: int,
) -> LabeledCases:
    """Find labeled cases in nnU-Net's folders, or those that an MSD ``dataset.json`` lists.

    Args:
        dataset_dir: holds ``imagesTr/CASE_0000`` (one file per channel, or ``CASE`` with all) and
            ``labelsTr/CASE``.
        datalist: the MSD file, with a ``training`` section and perhaps a ``validation`` section;
            of a ``test`` section, which MSD has without labels, the labeled cases count.
        data_root: what the datalist's paths are relative to.
        file_endings: of images and labels, without the dot, in any case.
        in_channels: channels of an image.

    Raises:
        FileNotFoundError: there is no such datalist.
        ValueError: the datalist cannot be read, or holds out what it trains on; masks lie among the
            images; a file is a pipe or a device, or has a name that no text file could hold.
    """
    if datalist:
        return _read_datalist(datalist, data_root)
    images, twice_images = _files_by_name(Path(dataset_dir, "imagesTr"), file_endings)
    labels, twice_labels = _files_by_name(Path(dataset_dir, "labelsTr"), file_endings)
    cases = {
        name: {
            "image": [images[key] for key in _image_names(name, in_channels) if key in images],
            "label": label,
        }
        for name, label in labels.items()
    }
    refuse_mask_files(images.values())
    used = {file for case in cases.values() for file in case["image"]}
    return LabeledCases(
        source=str(dataset_dir),
        cases=list(cases.values()),
        validation=[],
        unmatched={
            name: case for name, case in cases.items() if len(case["image"]) not in (1, in_channels)
        },
        unlabeled=sorted(set(images.values()) - used),
        duplicates=twice_images + twice_labels,
    )


def find_data_root(
    dataset_dir: PathLike, datalist: PathLike | None, default_dir: PathLike
) -> PathLike:
    """What the paths of cases are relative to: a datalist's own folder unless another is given."""
    if datalist and str(dataset_dir) == str(default_dir):
        return os.path.dirname(os.path.abspath(datalist))
    return dataset_dir


def find_images(
    dataset_dir: PathLike, *, file_endings: Sequence[str], in_channels: int
) -> ImageCases:
    """Find the images in a folder or, if it holds none, in its ``imagesTr``.

    ``CASE_0000``, ``CASE_0001``, ... are the channels of a case where there are as many of them as
    the network has channels; any other file is a case of its own.

    Args:
        dataset_dir: the folder.
        file_endings: without the dot, in any case.
        in_channels: channels of an image.

    Raises:
        ValueError: a file is a pipe or a device, or has a name that no text file could hold.
    """
    images, duplicates = _files_by_name(Path(dataset_dir), file_endings)
    if not images:
        images, duplicates = _files_by_name(Path(dataset_dir, "imagesTr"), file_endings)
    cases, unclear = group_channels(images, in_channels)
    masks = list(masks_among(images.values()))
    return ImageCases(str(dataset_dir), cases, unclear, duplicates, masks)


def group_channels(
    images: Mapping[str, str], in_channels: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Cases among the images of a folder, as :func:`find_images` tells them.

    Args:
        images: files by their name without the ending.
        in_channels: channels of an image.

    Returns:
        Files by the name of the case, and the names of cases with neither one file nor one per
        channel.

    >>> group_channels({"a_0000": "a_0000.png", "b": "b.png"}, 1)
    ({'a': ['a_0000.png'], 'b': ['b.png']}, [])
    """
    channels = [
        name
        for name in images
        if re.fullmatch(".+_[0-9]{4}", name)
        and int(name[-4:]) < in_channels
        and f"{name[:-4]}0000" in images
        and f"{name[:-4]}{in_channels:04d}" not in images
    ]
    case_of = {name: name[:-5] if name in channels else name for name in images}
    cases = {
        case: [images[key] for key in _image_names(case, in_channels) if case_of.get(key) == case]
        for case in sorted(set(case_of.values()))
    }
    unclear = [
        case
        for case, files in cases.items()
        if len(files) not in (1, in_channels) or case in channels
    ]
    return cases, unclear


def files_of(case: Case) -> list[str]:
    """Image files and label of a case."""
    images = [case["image"]] if isinstance(case["image"], str) else case["image"]
    return [str(file) for file in (*images, case.get("label")) if file]


def _files_by_name(folder: Path, endings: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Files by their name without the ending, and those whose name a later one has too."""
    alternatives = "|".join(map(re.escape, endings))
    pattern = re.compile(f"([^.].*)[.](?:{alternatives})", re.IGNORECASE | re.DOTALL)
    matches = [(pattern.fullmatch(file.name), str(file)) for file in sorted(folder.glob("*"))]
    named = [(match[1], file) for match, file in matches if match is not None]
    for _, file in named:
        _check_file(file)
    files = dict(named)
    return files, [file for name, file in named if files[name] != file]


def _image_names(case: str, in_channels: int) -> list[str]:
    """Names that the image files of a case may have: with all channels, or one per channel."""
    return [case, *(f"{case}_{channel:04d}" for channel in range(in_channels))]


def _is_nifti(file: PathLike) -> bool:
    """Whether a file is called as NIfTI; ``scan.nii.png`` is not."""
    return str(file).lower().endswith((".nii", ".nii.gz"))


def _check_file(file: PathLike) -> None:
    """Refuse what may never end to be read, and a name that no text file could hold."""
    name = os.path.basename(file)
    if _UNSAFE.search(name):
        raise ValueError(
            f"the file name {ascii(name)} holds a control character or is not UTF-8: rename it"
        )
    if os.path.exists(file):
        mode = os.stat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{file} is a pipe, socket or device, no file: remove it")


def _read_datalist(datalist: PathLike, data_root: PathLike) -> LabeledCases:
    """The cases of an MSD ``dataset.json``."""
    if not os.path.isfile(datalist):
        raise FileNotFoundError(f"no such file: {datalist}: check --datalist")
    try:
        # Windows writes a byte order mark.
        content = json.loads(Path(datalist).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{datalist} is not JSON ({error}): give an MSD dataset.json") from error
    sections: dict[str, list[Case]] = {"training": [], "validation": [], "test": []}
    if isinstance(content, dict) and isinstance(content.get("test"), list):
        content["test"] = [it for it in content["test"] if isinstance(it, dict) and it.get("label")]
    if not isinstance(content, dict) or not any(content.get(name) for name in sections):
        raise ValueError(
            f"{datalist} lists no cases: it needs a 'training' list as MSD has; for nnU-Net's "
            "folders pass --dataset_dir FOLDER alone"
        )
    for name, cases in sections.items():
        for index, entry in enumerate(content.get(name) or []):
            where = f"{datalist}: {name}[{index}]"
            if not isinstance(entry, dict) or not entry.get("image"):
                raise ValueError(f"{where} names no 'image': give the path of a file")
            paths = {key: entry[key] for key in ("image", "label") if entry.get(key)}
            if "label" in paths:
                paths["label"] = _one_label(paths["label"], where)
            cases.append({**entry, **{key: _listed(paths[key], data_root, where) for key in paths}})
    _refuse_shared(sections, str(datalist))
    refuse_mask_files(
        file for cases in sections.values() for case in cases for file in image_files(case)
    )
    return LabeledCases(
        str(datalist),
        sections["training"],
        sections["validation"],
        unmatched={},
        unlabeled=[],
        duplicates=[],
        test=sections["test"],
    )


def _one_label(label: Any, where: str) -> Any:
    """The one file of a label, which may be in a list as those of an image are."""
    files = label if isinstance(label, list) else [label]
    if len(files) != 1 or isinstance(files[0], list):
        raise ValueError(
            f"{where} has {label!r} as its label: give the path of one file, whose values are the "
            "classes"
        )
    return files[0]


def _listed(paths: Any, data_root: PathLike, where: str) -> Any:
    """One path of a datalist, or several, as they are here."""
    if isinstance(paths, list) and paths:
        return [_listed(path, data_root, where) for path in paths]
    if not isinstance(paths, str):
        raise ValueError(f"{where} has {paths!r} where the path of a file should be: give one")
    file = os.path.normpath(os.path.join(data_root, paths))
    if "\\" in paths and not os.path.lexists(file):  # written under Windows
        file = os.path.normpath(os.path.join(data_root, paths.replace("\\", "/")))
    _check_file(file)
    return file


def _refuse_shared(sections: Mapping[str, Sequence[Case]], datalist: str) -> None:
    """Refuse an image that is listed twice, and a label of both sections."""
    seen: dict[str, str] = {}
    for section, cases in sections.items():
        for index, case in enumerate(cases):
            here = f"{section}[{index}]"
            files = {os.path.realpath(file) for file in image_files(case)}
            labels = {f"{os.path.realpath(str(case.get('label')))}"} if case.get("label") else set()
            if files & labels:
                raise ValueError(f"{datalist}: {here} has its image as label: give the label")
            for file in files | labels:
                other = seen.setdefault(file, here)
                is_label_twice = file in labels and other.startswith(section)
                if other != here and not is_label_twice:
                    raise ValueError(
                        f"{datalist}: {other} and {here} share {os.path.basename(file)}, so that a "
                        "case could be trained on and held out: list each case once"
                    )


def image_files(case: Case) -> list[str]:
    """The image files of a case."""
    return [case["image"]] if isinstance(case["image"], str) else list(case["image"])


def name_some(names: Any) -> str:
    """The first of some names."""
    return ", ".join(list(names)[:NAMED])
