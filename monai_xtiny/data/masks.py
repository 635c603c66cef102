"""Masks beside images, told by their names: labels are never opened."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from monai_xtiny.bundled.masks import MASK_WORD, pair_masks, split_words

# What every such word holds.
_MAYBE = re.compile(
    "mask|seg|label|lbl|gt|truth|anno|pred|overlay|roi|contour|manual", re.IGNORECASE
)
_PART = re.compile("train|training|test|testing|val|valid|validation|[0-9]+")


def find_masks(names: Iterable[str]) -> dict[str, str]:
    """Files that are called as the mask of another file.

    A mask has the name of an image and a word such as ``mask``, ``seg``, ``label`` or ``gt``, at
    the end or at the beginning, or lies in a folder with such a name while others do not.

    Args:
        names: paths relative to where the search looks, with forward slashes.

    Returns:
        The masks, each with the image that gives it away.

    >>> find_masks(["a.png", "a_mask.png", "p1/image.png", "p1/seg.png"])
    {'a_mask.png': 'a.png', 'p1/seg.png': 'p1/image.png'}
    """
    names = list(names)
    if not any(map(_MAYBE.search, names)):  # a second for 100,000 names otherwise
        return {}
    stems: dict[str, dict[str, str]] = defaultdict(dict)
    in_mask_folders: list[str] = []
    elsewhere: str | None = None
    for name in names:
        path = PurePosixPath(name)
        stems[str(path.parent)][_stem_of(path.name)] = name
        if any(map(_is_mask_folder, path.parts[:-1])):
            in_mask_folders.append(name)
        else:
            elsewhere = elsewhere or name
    found = {
        files[mask]: files[image]
        for files in stems.values()
        for mask, image in pair_masks(files).items()
    }
    if elsewhere is not None:
        found.update(dict.fromkeys(in_mask_folders, elsewhere))
    return found


def suggest_glob(root: str, images: Sequence[str], masks: Sequence[str]) -> str | None:
    """A glob that takes the images and none of the masks, if there is a simple one.

    Args:
        root: folder that the names are relative to.
        images: names that it must match.
        masks: names that it must not match.
    """
    folders = {os.path.dirname(name) for name in images}
    endings = {name[len(_stem_of(name)) :] for name in images}
    if len(endings) != 1:
        return None
    ending = endings.pop()
    if len({os.path.dirname(name) for name in [*images, *masks]}) > 1:
        parents = {os.path.basename(folder) for folder in folders}
        if len(parents) != 1 or any(os.path.dirname(name) in folders for name in masks):
            return None
        parent = parents.pop()
        if not parent or any(os.path.basename(os.path.dirname(name)) == parent for name in masks):
            return None
        between = () if folders == {parent} else ("**",)
        return os.path.join(glob.escape(root), *between, glob.escape(parent), f"*{ending}")
    names = [os.path.basename(name) for name in images]
    stems = [_stem_of(name) for name in names]
    suffix = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]
    last = "".join(sorted({_stem_of(name)[-1:] for name in masks}))
    candidates = [f"*{ending}", f"*[0-9]{ending}", f"*[!{last}]{ending}"]
    if len(stems) > 1:
        candidates[1:1] = [
            f"*{glob.escape(suffix)}{ending}",
            f"{glob.escape(os.path.commonprefix(stems))}*{ending}",
        ]
    unwanted = [os.path.basename(name) for name in masks]
    for pattern in candidates:
        if all(fnmatchcase(name, pattern) for name in names) and not any(
            fnmatchcase(name, pattern) for name in unwanted
        ):
            return os.path.join(glob.escape(os.path.join(root, *folders)), pattern)
    return None


def _is_mask_folder(name: str) -> bool:
    """Whether a folder is called as one of labels: masks, train_masks, labelsTr, gt, ..."""
    words = split_words(re.sub("(?<=[a-z])(Tr|Ts|Val)$", "", name))
    while len(words) > 1 and _PART.fullmatch(words[-1]):
        words = words[:-1]
    return MASK_WORD.fullmatch(words[-1]) is not None


def _stem_of(name: str) -> str:
    """A file name without its ending; ``.nii.gz`` is one."""
    return name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]
