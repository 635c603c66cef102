"""The preprocessing of each kind of data, as a piece of a MONAI config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DATA_KINDS = ("volumes", "slices", "images")
_MODES = {"image": "bilinear", "label": "nearest"}


def preprocessing_fragment(
    kind: str, keys: str | Sequence[str] = "image", *, pixdim: str | Sequence[float] = "@spacing"
) -> list[dict[str, Any]]:
    """The deterministic transforms between reading a file and cropping it, as MONAI config text.

    Every image is cropped to the box of its voxels that are not 0, as nnU-Net does. Volumes, and
    volumes cut into slices, are turned to RAS before and resampled to ``pixdim`` after. Then every
    channel is normalized over the whole crop. 2D images have no physical size, and are not turned.

    Args:
        kind: ``volumes``, ``slices`` or ``images``.
        keys: ``"image"``, or ``["image", "label"]``; or the id of such a list in the config, with
            its ``@``, images first. Labels are resampled to the nearest voxel, and not
            normalized.
        pixdim: mm along each axis, -1 to leave the axis alone; or the id of it in the config.

    Returns:
        One dictionary per transform, of JSON's types; a new list with each call.

    Raises:
        ValueError: another kind, or a key that is neither ``image`` nor ``label``.

    >>> [step["_target_"] for step in preprocessing_fragment("images")]
    ['CropForegroundd', 'NormalizeIntensityd']
    """
    if kind not in DATA_KINDS:
        raise ValueError(f"kind is {kind!r}: give one of {', '.join(DATA_KINDS)}")
    normalization = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    crop = {
        "_target_": "CropForegroundd",
        "keys": _plain(keys),
        "source_key": "image",
        "select_fn": "$lambda image: image != 0",
        "allow_smaller": True,
        "start_coord_key": None,
        "end_coord_key": None,
    }
    if kind == "images":
        return [crop, normalization]
    return [
        # labels are named because MONAI warns that their default has changed.
        {"_target_": "Orientationd", "keys": _plain(keys), "axcodes": "RAS", "labels": None},
        crop,
        # MONAI Label puts a string under image_path, which Spacingd of monai 1.6 takes for a
        # dictionary of metadata: out of its sight, and back.
        _copy("image_path", "source_path"),
        {"_target_": "DeleteItemsd", "keys": "image_path"},
        {
            "_target_": "Spacingd",
            "keys": _plain(keys),
            "pixdim": pixdim if isinstance(pixdim, str) else [float(size) for size in pixdim],
            "mode": _modes(keys),
        },
        _copy("source_path", "image_path"),
        normalization,
    ]


def _plain(keys: str | Sequence[str]) -> str | list[str]:
    """Keys as JSON has them; a list of their own for each transform."""
    return keys if isinstance(keys, str) else list(keys)


def _modes(keys: str | Sequence[str]) -> str | list[str]:
    """How each key is resampled."""
    if isinstance(keys, str) and keys.startswith("@"):
        return f"${list(_MODES.values())}[:len({keys})]"
    unknown = [key for key in ([keys] if isinstance(keys, str) else keys) if key not in _MODES]
    if unknown:
        raise ValueError(f"keys are {keys!r}: 'image' and 'label' can be resampled")
    return _MODES[keys] if isinstance(keys, str) else [_MODES[key] for key in keys]


def _copy(source: str, target: str) -> dict[str, Any]:
    """Copy an item that may be missing."""
    return {"_target_": "CopyItemsd", "keys": source, "names": target, "allow_missing_keys": True}
