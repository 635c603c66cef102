"""What ``metadata.json`` says about a bundle: MONAI's specification, the Model Zoo's schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai_xtiny.data.cases import RASTER_SUFFIXES
from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.choice import Selection

# What a bundle imports besides MONAI, PyTorch and NumPy.
_REQUIRED_PACKAGES = ("nibabel", "pytorch-ignite", "scipy", "pillow", "tqdm")


def is_raster(table: ScoreTable) -> bool:
    """Whether the images are PNG and the like, without a physical size."""
    return any(name.lower().endswith(RASTER_SUFFIXES) for name in table.images[:1])


def bundle_metadata(
    selection: Selection, *, name: str, label_names: tuple[str, ...]
) -> dict[str, Any]:
    """The keys of ``metadata.json`` that depend on the selection.

    Axis order: (x, y[, z]), as the network takes them. The network's output is logits, which have
    no bounds; ``post_processed_outputs`` are the labels that ``inference.json`` writes.

    Args:
        selection: the choice and the table it was made from.
        name: of the bundle's folder.
        label_names: of the classes, background first, free of what MONAI's configs evaluate.
    """
    plan, images = selection.table.plan, selection.table.images
    suffix = Path(images[0]).suffix.lstrip(".").lower() if images else ""
    foreground = ", ".join(label_names[1:])
    classes = {str(index): label for index, label in enumerate(label_names)}
    numbered = ", ".join(f"{index} is {label}" for index, label in classes.items())
    return {
        "name": _display_name(name),
        "monai_version": _plain_version("monai"),
        "pytorch_version": _plain_version("torch"),
        "numpy_version": _plain_version("numpy"),
        "required_packages_version": {
            package: _plain_version(package) for package in _REQUIRED_PACKAGES
        },
        "task": f"Segmentation of {foreground}",
        "description": (
            f"A {plan.spatial_dims}D U-Net of {selection.rung.num_parameters} parameters (width "
            f"cap {selection.max_features}) that segments {foreground}"
        ),
        "data_type": suffix if is_raster(selection.table) else "nibabel",
        "image_classes": f"{plan.in_channels} channel data, z-scored per image and channel",
        "label_classes": f"single channel data of class indices: {numbered}",
        "pred_classes": f"{plan.out_channels} channels of logits, one per class: {numbered}",
        "network_data_format": _data_format(selection.table, classes),
    }


def check_version(metadata: Mapping[str, Any]) -> str:
    """The version of a bundle, which becomes a part of file names.

    Raises:
        ValueError: it is none.

    >>> check_version({"version": "0.1.0"})
    '0.1.0'
    """
    text = metadata.get("version")
    if not isinstance(text, str) or not re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,50}", text):
        raise ValueError(
            f"version in configs/metadata.json is {text!r}: give digits and dots, 0.1.0 for example"
        )
    return text


def _data_format(table: ScoreTable, classes: dict[str, str]) -> dict[str, Any]:
    """What goes into the network, what comes out, and what is written."""
    plan = table.plan
    rgb = is_raster(table) and plan.in_channels == 3
    numbered = [f"image channel {index}" for index in range(plan.in_channels)]
    channels = ("red", "green", "blue") if rgb else numbered
    tensor = {"type": "image", "spatial_shape": list(plan.patch_size), "is_patch_data": True}
    image = {
        **tensor,
        "format": "RGB" if rgb else "magnitude",
        "modality": "n/a",
        "num_channels": plan.in_channels,
        "dtype": "float32",
        "value_range": [-5, 5],
        "channel_def": {str(index): channel for index, channel in enumerate(channels)},
    }
    # Logits have no bounds, for which the specification has the empty list.
    logits = {
        **tensor,
        "format": "segmentation",
        "num_channels": plan.out_channels,
        "dtype": "float32",
        "value_range": [],
        "channel_def": classes,
    }
    image_dims = plan.spatial_dims + (plan.slice_axis is not None)
    label = {
        "type": "image",
        "format": "segmentation",
        "spatial_shape": ["*"] * image_dims,
        "num_channels": 1,
        "dtype": "uint8",
        "value_range": [0, plan.out_channels - 1],
        "is_patch_data": False,
        "channel_def": {"0": "class index"},
    }
    return {
        "inputs": {"image": image},
        "outputs": {"pred": logits},
        "post_processed_outputs": {"pred": label},
    }


def _display_name(name: str) -> str:
    """What a catalog shows: words, unless MONAI would take them for code."""
    text = " ".join(name.split("_")).strip()
    return name if text[:1] in ("", "$", "@", "%") else text[0].upper() + text[1:]


def _plain_version(package: str) -> str:
    """A version as PyPI has it, without a build's local part."""
    return version(package).split("+", 1)[0]
