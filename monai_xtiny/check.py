"""Labelled data against a bundle, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

from monai_xtiny.data import Case, root_cause
from monai_xtiny.headers import Header, read_headers
from monai_xtiny.labels import PlainPath


@dataclass(frozen=True)
class DataCheck:
    """What a pre-flight found.

    Args:
        num_cases: labelled cases that training and validation would use.
        problems: one line a case that does not fit, each with what to do.
        num_padded: cases smaller than the patch along some axis, which are padded with zeros.
    """

    num_cases: int
    problems: tuple[str, ...]
    num_padded: int = 0


def check_bundle(
    bundle_dir: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
) -> DataCheck:
    """Check that labelled data and weights fit a bundle, reading them as ``train.json`` would.

    Args:
        bundle_dir: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD ``dataset.json``; one of the two is needed.

    Returns:
        The number of cases, and every problem: an image without a label or a label without an
        image, a channel count other than the plan's, a label of another shape than its image, a
        label value that is no class, an image of less than half a patch along some axis,
        weights of another network. Smaller shortfalls are padded, by nnU-Net's rule, and counted.

    Raises:
        FileNotFoundError: there is no bundle, or no data.
        ValueError: the data hold no labelled case.
    """
    bundle = Path(bundle_dir)
    config_file = bundle / "configs" / "train.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{str(bundle)!r} is no bundle: it has no configs/train.json")
    source = data if data is not None else datalist
    if source is None or not Path(source).exists():
        raise FileNotFoundError(f"no such data: {source!r}: give --data DIR or --datalist FILE")
    parser = ConfigParser()
    parser.read_config(str(config_file))
    parser["dataset_dir"] = PlainPath(os.fspath(data) if data is not None else "")
    if datalist is not None:
        parser["datalist"] = PlainPath(os.fspath(datalist))
    cases = parser.get_parsed_content("cases") + parser.get_parsed_content("listed_val_cases")
    unmatched = parser.get_parsed_content("unmatched_cases")
    if not cases:
        raise ValueError(
            f"no labelled case in {os.fspath(source)!r}: it needs imagesTr/CASE_0000 and "
            "labelsTr/CASE, or an MSD datalist"
        )
    problems = _weight_problems(bundle, parser)
    problems += [
        f"label {case!r} has no image with the plan's channels: add imagesTr/{case}_0000, ..."
        for case in unmatched
    ]
    problems += [
        f"image {name!r} has no label: add labelsTr/CASE, or move the image out of imagesTr"
        for name in parser.get_parsed_content("unlabelled_images")
    ]
    num_padded = 0
    for case in cases:
        if case.get("label") is None:
            problems.append(
                f"case {case['image']!r} has no label: add one, or take it off the list"
            )
        elif Path(case["label"]).stem not in unmatched:
            found, is_padded = _case_problems(case, parser)
            problems += found
            num_padded += is_padded
    return DataCheck(len(cases), tuple(problems), num_padded)


def _weight_problems(bundle: Path, parser: ConfigParser) -> list[str]:
    """Whether ``model.pt`` holds the network that the configs describe."""
    path = bundle / "models" / "model.pt"
    try:
        weights = torch.load(path, weights_only=True, map_location="cpu")
        parser.get_parsed_content("network_def").load_state_dict(weights.get("model", weights))
    except FileNotFoundError:
        return [f"{str(path)!r} is missing: export the bundle again"]
    except Exception as error:
        return [
            f"{str(path)!r} does not hold the network of configs/train.json "
            f"({root_cause(error)}): export the bundle again"
        ]
    return []


def _case_problems(case: Mapping[str, Any], parser: ConfigParser) -> tuple[list[str], bool]:
    """What is wrong with one labelled case, and whether it is smaller than the patch."""
    files = case["image"] if isinstance(case["image"], list) else [case["image"]]
    kind = "nifti" if ".nii" in os.path.basename(files[0]).lower() else "raster"
    name = os.path.basename(files[0])
    try:
        image = read_headers([Case(name, tuple(files), kind)])[0]
        label = read_headers([Case(os.path.basename(case["label"]), (case["label"],), kind)])[0]
        values = LoadImage(
            reader="NibabelReader" if kind == "nifti" else "PILReader", image_only=True
        )(case["label"]).numpy()
    except Exception as error:
        return [f"case {name!r}: {root_cause(error)}: repair or leave it out"], False
    shares = _patch_shares(image, parser)
    return [
        *_shape_problems(name, image, label, parser["in_channels"]),
        *_value_problems(name, values, parser["num_classes"]),
        *_size_problems(name, image, parser["patch_size"], shares),
    ], min(shares, default=1) < 1


def _patch_shares(image: Header, parser: ConfigParser) -> list[float]:
    """Size of the image on the plan's grid, as a share of the patch, along each of its axes."""
    crop = parser.get_parsed_content("crop_size")
    spacing = parser.get("spacing") or [-1] * len(crop)
    if len(crop) != len(image.shape):
        return [0.0]
    return [
        size * (own / planned if planned > 0 else 1) / wanted
        for size, own, planned, wanted in zip(
            image.shape, image.spacing, spacing, crop, strict=True
        )
    ]


def _size_problems(
    name: str, image: Header, patch_size: list[int], shares: list[float]
) -> list[str]:
    """An image that could fill less than half of what the network was planned for."""
    if min(shares) >= 0.5:
        return []
    return [
        f"case {name!r}: {image.shape} at {image.spacing} mm is less than half of the patch "
        f"{tuple(patch_size)}: leave it out, or search again on images like it"
    ]


def _shape_problems(name: str, image: Header, label: Header, in_channels: int) -> list[str]:
    """Channels, and the label's grid against the image's."""
    problems = []
    if image.in_channels != in_channels:
        problems.append(
            f"case {name!r}: {image.in_channels} channels, and the bundle takes {in_channels}: "
            "convert the image, or search again on images like it"
        )
    if label.shape != image.shape:
        problems.append(
            f"case {name!r}: the label has shape {label.shape}, the image {image.shape}: "
            "resample the label to the image's grid"
        )
    return problems


def _value_problems(name: str, values: np.ndarray, num_classes: int) -> list[str]:
    """Label values that are no class."""
    found = np.unique(values)
    wrong = [value for value in found.tolist() if value not in range(num_classes)]
    if not wrong:
        return []
    return [
        f"case {name!r}: the label holds {', '.join(f'{value:g}' for value in wrong[:5])}, and the "
        f"classes are 0 to {num_classes - 1}: renumber the label"
    ]
