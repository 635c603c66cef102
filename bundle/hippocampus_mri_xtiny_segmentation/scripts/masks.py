# Written by monai_xtiny 0.2.0, which need not be installed.
"""Masks that lie beside images, told by their names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable

# Words that name a mask, in lower case.
MASK_WORD = re.compile(
    "(?:masks?|seg(?:s|mentations?|mented)?|labels?|labelmaps?|lbls?|gts?|(?:ground)?truths?"
    r"|annotations?|annos?|preds?|predictions?|overlays?|rois?|contours?|manual)\d{0,2}"
)


def refuse_mask_files(files: Iterable[str]) -> None:
    """Refuse images that are called as masks of others."""
    masks = masks_among(files)
    if masks:
        mask, image = next(iter(masks.items()))
        more = f" (and {len(masks) - 1} more likewise)" if len(masks) > 1 else ""
        raise ValueError(
            f"{mask} looks like a mask beside the image {os.path.basename(image)}{more}: move the "
            "masks into a folder of their own"
        )


def masks_among(files: Iterable[str]) -> dict[str, str]:
    """Files that are called as the mask of another in their folder, and that one."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        folder, name = os.path.split(file)
        stem = name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]
        folders[folder][stem] = file
    return {
        stems[mask]: stems[image]
        for stems in folders.values()
        for mask, image in pair_masks(stems).items()
    }


def pair_masks(stems: Iterable[str]) -> dict[str, str]:
    """Names in one folder, without their endings, that are called as the mask of another.

    >>> pair_masks(["case1_0000", "case1_seg", "img-2", "gt-2", "label_free_3"])
    {'case1_seg': 'case1_0000', 'gt-2': 'img-2'}
    """
    words = {stem: split_words(stem) for stem in stems}
    places = {
        stem: next((i for i, word in enumerate(split) if MASK_WORD.fullmatch(word)), None)
        for stem, split in words.items()
    }
    if not any(place is not None for place in places.values()):
        return {}
    known: dict[tuple[str, tuple[str, ...]], str] = {}
    for stem, split in words.items():
        # x_0000 is a channel of x.
        is_channel = re.fullmatch("[0-9]{4}", split[-1])
        for form in [split, split[:-1]] if is_channel else [split]:
            if places[stem] is None:
                known.setdefault(("all", form), stem)
                for cut in range(len(form) + 1):
                    known.setdefault(("start", form[:cut]), stem)
                    known.setdefault(("end", form[cut:]), stem)
    found = {}
    for stem, place in places.items():
        if place is None:
            continue
        before, after = words[stem][:place], words[stem][place + 1 :]
        keys = [("all", before)]
        if after and not before:
            keys.append(("end", after))
        elif all(re.fullmatch("[0-9]{1,4}", word) for word in after):
            keys.append(("start", before))
        image = next((known[key] for key in keys if key in known), None)
        if image is not None:
            found[stem] = image
    return found


def split_words(stem: str) -> tuple[str, ...]:
    """A name cut into its words, in lower case."""
    joined = re.sub("ground[_. -]+truth", "groundtruth", stem.lower())
    return tuple(re.split("[_. -]+", joined))
