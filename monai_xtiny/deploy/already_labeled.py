"""Which of the cases that were found have a label already."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from monai_xtiny.bundle.folder import SPLIT, Bundle
from monai_xtiny.data.cases import file_kind, file_stem, relative_name
from monai_xtiny.data.walk import walk_once
from monai_xtiny.deploy.targets import Target
from monai_xtiny.system.files import read_json

_IMAGES, _LABELS = "imagesTr", "labelsTr"


@dataclass(frozen=True)
class Unlabeled:
    """The cases without a label, and the others.

    Args:
        cases: without one.
        left_out: the others, by where their labels are known from.
    """

    cases: tuple[Target, ...]
    left_out: Mapping[str, tuple[Target, ...]]


def without_labeled(
    cases: Sequence[Target], bundle: Bundle, labeled: str | os.PathLike[str] | None = None
) -> Unlabeled:
    """Set aside cases that have a label, by the names of files alone.

    These are the cases of ``imagesTr`` with a file of their name in the ``labelsTr`` beside it,
    those with one in a folder that is given, and those that the bundle's ``configs/datalist.json``
    lists, which training writes, by the last folders of their paths.

    Args:
        cases: that were found.
        bundle: that they are to be ranked by.
        labeled: a folder of labels, called as the case or as its first file, in the same folders
            as the images.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a datalist is damaged.
    """
    left_out: dict[str, list[Target]] = {}
    beside: dict[str, set[str]] = {}
    given = None if labeled is None else _names_in(labeled)
    listed = _listed_images(bundle)
    kept = []
    for case in cases:
        reason = _beside(case, beside)
        if reason is None and given is not None and _names_of(case) & given:
            reason = os.fspath(labeled or "")
        if reason is None and _is_listed(case, listed):
            reason = f"{bundle.name}/{SPLIT}"
        if reason is None:
            kept.append(case)
        else:
            left_out.setdefault(reason, []).append(case)
    return Unlabeled(tuple(kept), {place: tuple(some) for place, some in left_out.items()})


def _beside(case: Target, known: dict[str, set[str]]) -> str | None:
    """The ``labelsTr`` beside the ``imagesTr`` of a case that holds its label."""
    folder = os.path.dirname(os.path.abspath(case.files[0]))
    if os.path.basename(folder) != _IMAGES:
        return None
    labels = os.path.join(os.path.dirname(folder), _LABELS)
    if labels not in known:
        files = os.listdir(labels) if os.path.isdir(labels) else []
        known[labels] = {file_stem(name) for name in files if file_kind(name)}
    return labels if PurePosixPath(case.name).name in known[labels] else None


def _names_of(case: Target) -> set[str]:
    """What the label of a case may be called: as nnU-Net has it, or as MONAI Label, CASE_0000."""
    return {case.name, PurePosixPath(case.name).with_name(case.stem).as_posix()}


def _names_in(labeled: str | os.PathLike[str]) -> set[str]:
    """Names of the labels in a folder, without their endings."""
    if not os.path.isdir(labeled):
        raise FileNotFoundError(
            f"no such folder of labels: {os.fspath(labeled)!r}: check --labeled"
        )
    return {
        file_stem(relative_name(os.path.join(folder, name), Path(labeled)))
        for folder, names in walk_once(labeled)
        for name in names
        if file_kind(name)
    }


def _listed_images(bundle: Bundle) -> set[tuple[str, ...]]:
    """The images of the cases that a bundle was trained and validated on, as parts of paths."""
    found = set()
    for path in sorted(bundle.path(SPLIT).parent.glob("datalist*.json")):
        content = read_json(path)
        for section in ("training", "validation"):
            entries = content.get(section)
            for entry in entries if isinstance(entries, list) else ():
                found |= set(map(_tail, _images_of(entry)))
    return found - {()}


def _images_of(entry: Any) -> Iterable[str]:
    """The files of an entry of a datalist."""
    image = entry.get("image") if isinstance(entry, Mapping) else None
    files = image if isinstance(image, list) else [image]
    return (file for file in files if isinstance(file, str))


def _tail(path: str) -> tuple[str, ...]:
    """A path of a datalist without what leads out of its folder."""
    parts = PurePosixPath(path).parts
    return tuple(part for part in parts if part not in ("..", "/"))


def _is_listed(case: Target, listed: set[tuple[str, ...]]) -> bool:
    """Whether the end of a case's path is in a datalist; a mere file name, in no deeper folder."""
    parts = Path(os.path.abspath(case.files[0])).parts
    lengths = {len(tail) for tail in listed}
    return any(
        parts[-length:] in listed for length in lengths if length > 1 or "/" not in case.name
    )
