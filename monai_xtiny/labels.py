"""Text of users on its way into configs: names of classes and paths, which must not become code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


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
        names = _labels_of_dataset(Path(images))
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


def check_config_text(text: str, what: str) -> str:
    """Refuse text that MONAI would not read as text in a bundle's configuration.

    MONAI evaluates strings that start with ``$``, resolves those with ``@`` and reads the file of
    those with ``%``; any ``#`` or ``::`` separates keys. There is no escape.

    Args:
        text: a name or path on its way into a configuration.
        what: what it is, for the message.

    Returns:
        The text.

    Raises:
        ValueError: the text starts with one of ``$ @ %`` or holds ``#``, ``::`` or a control
            character.

    >>> check_config_text("$import os", "label name")
    Traceback (most recent call last):
    ...
    ValueError: label name '$import os' starts with '$', which MONAI's configs evaluate: rename it
    """
    if text[:1] in ("$", "@", "%"):
        raise ValueError(
            f"{what} {text!r} starts with {text[0]!r}, which MONAI's configs evaluate: rename it"
        )
    for mark in ("#", "::"):
        if mark in text:
            raise ValueError(
                f"{what} {text!r} holds {mark!r}, which MONAI's configs split at: rename it"
            )
    if not text.isprintable():
        raise ValueError(f"{what} {text!r} holds a control character: rename it")
    return text


class PlainPath(os.PathLike[str]):
    """A path as it was typed, opaque to MONAI's config parser, which evaluates strings only.

    Args:
        text: the path.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __fspath__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text


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
        labels = json.loads(found.read_text(encoding="utf-8")).get("labels", {})
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
            f"{str(found)!r} has no plain labels ({error}): give --label_names"
        ) from error
    if "ignore" in values.values():
        raise ValueError(
            f"{str(found)!r} has nnU-Net's ignore label, which training here cannot mask: "
            "relabel, and give --label_names"
        )
    if not values:
        return ["background", "foreground"]
    if sorted(values) != list(range(len(values))):
        raise ValueError(
            f"{str(found)!r} numbers its labels {sorted(values)}, not 0, 1, 2, ...: "
            "renumber them or give --label_names"
        )
    return [values[value] for value in range(len(values))]
