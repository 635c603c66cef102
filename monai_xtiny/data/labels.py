"""Names of the classes; no label image is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_xtiny.system.config_text import check_config_text, path_text


def read_label_names(
    images: str | os.PathLike[str], label_names: str | Sequence[str] | None = None
) -> tuple[str, ...]:
    """Names of the classes, background first.

    Args:
        images: what the search was pointed at; the ``labels`` of a ``dataset.json`` there
            (nnU-Net's or MSD's) are used if no names are given. No label image is opened.
        label_names: names, or one string with commas.

    Returns:
        The names; ``("background", "foreground")`` if nothing names them.

    Raises:
        ValueError: fewer than two names, a repeated or unsafe name, or labels in ``dataset.json``
            that are not numbered 0, 1, 2, ...

    >>> read_label_names(".", "background,nucleus")
    ('background', 'nucleus')
    """
    if label_names is None:
        names = _labels_of_dataset(Path(path_text(images, "images")))
    elif isinstance(label_names, str):
        names = [name.strip() for name in label_names.split(",")]
    else:
        names = [str(name) for name in label_names]
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise ValueError(
            f"label names {', '.join(names)!r}: give two or more different ones, background first"
        )
    for name in names:
        check_config_text(name, "label name")
    return tuple(names)


def _labels_of_dataset(path: Path) -> list[str]:
    """Label names of the dataset.json beside the images, in the order of their values."""
    folder = path.parent if path.suffix.lower() == ".json" else path
    candidates = (path, folder / "dataset.json", folder.parent / "dataset.json")
    found = next(
        (item for item in candidates if item.name.endswith(".json") and item.is_file()), None
    )
    if found is None:
        return ["background", "foreground"]
    try:
        labels = json.loads(found.read_text(encoding="utf-8-sig")).get("labels", {})
        special = find_special_labels(labels)
        if special is not None:
            raise ValueError(f"it has {special}, which is not supported: relabel")
        # nnU-Net writes {name: value}, MSD {value: name}.
        values = {
            int(value): str(name)
            for name, value in (
                (pair if not str(pair[0]).isdigit() else pair[::-1]) for pair in labels.items()
            )
        }
    except (
        UnicodeDecodeError,
        json.JSONDecodeError,
        RecursionError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{str(found)!r} has no plain labels ({error}): give --label_names, one per value"
        ) from error
    if not values:
        return ["background", "foreground"]
    if sorted(values) != list(range(len(values))):
        raise ValueError(
            f"{str(found)!r} numbers its labels {sorted(values)}, not 0, 1, 2, ...: "
            "renumber them or give --label_names"
        )
    return [values[value] for value in range(len(values))]


def find_special_labels(labels: Mapping[str, object]) -> str | None:
    """Say which of nnU-Net's labels are no plain classes, if any.

    Args:
        labels: of a ``dataset.json``.

    >>> find_special_labels({"background": 0, "whole tumor": [1, 2]})
    "nnU-Net's region 'whole tumor' of several values"
    """
    for name, value in labels.items():
        if "ignore" in (name, value):
            return "nnU-Net's ignore label"
        if isinstance(value, list):
            return f"nnU-Net's region {name!r} of several values"
    return None
