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
    """

    num_cases: int
    problems: tuple[str, ...]


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
        label value that is no class, weights of another network.

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
    cases = parser.get_parsed_content("cases")
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
    if data is not None:
        problems += _unlabelled(parser)
    in_channels, num_classes = parser["in_channels"], parser["num_classes"]
    for case in cases:
        if case.get("label") is not None and Path(case["label"]).stem not in unmatched:
            problems += _case_problems(case, in_channels, num_classes)
    return DataCheck(len(cases), tuple(problems))


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


def _unlabelled(parser: ConfigParser) -> list[str]:
    """Images that no label belongs to."""
    used = {name for files in parser.get_parsed_content("channel_files").values() for name in files}
    images = parser.get_parsed_content("image_files").values()
    return [
        f"image {name!r} has no label: add labelsTr/CASE, or move the image out of imagesTr"
        for name in images
        if name not in used
    ]


def _case_problems(case: Mapping[str, Any], in_channels: int, num_classes: int) -> list[str]:
    """What is wrong with one labelled case."""
    files = case["image"] if isinstance(case["image"], list) else [case["image"]]
    kind = "nifti" if ".nii" in os.path.basename(files[0]).lower() else "raster"
    name = os.path.basename(files[0])
    try:
        image = read_headers([Case(name, tuple(files), kind)])[0]
        values = LoadImage(
            reader="NibabelReader" if kind == "nifti" else "PILReader", image_only=True
        )(case["label"]).numpy()
    except Exception as error:
        return [f"case {name!r}: {root_cause(error)}: repair or leave it out"]
    return [
        *_shape_problems(name, image, case["label"], kind, in_channels),
        *_value_problems(name, values, num_classes),
    ]


def _shape_problems(
    name: str, image: Header, label_file: str, kind: str, in_channels: int
) -> list[str]:
    """Channels, and the label's grid against the image's."""
    problems = []
    if image.in_channels != in_channels:
        problems.append(
            f"case {name!r}: {image.in_channels} channels, and the bundle takes {in_channels}: "
            "convert the image, or search again on images like it"
        )
    label = read_headers([Case(os.path.basename(label_file), (label_file,), kind)])[0]
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
