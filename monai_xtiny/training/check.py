"""Labeled data against a bundle, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser
from monai.data.utils import affine_to_spacing
from monai.transforms import Compose, Orientation

from monai_xtiny.bundle.folder import SEARCH, TRAIN, WEIGHTS, Bundle
from monai_xtiny.bundle.weights import check_network_size
from monai_xtiny.bundle.workflow import LabeledCases
from monai_xtiny.system.config_text import check_config_text
from monai_xtiny.system.errors import root_cause
from monai_xtiny.training.labeled import data_options


@dataclass(frozen=True)
class DataCheck:
    """What a pre-flight found.

    Args:
        num_cases: labeled cases that training and validation would use.
        problems: one line per case that does not fit, each with what to do.
        num_padded: cases smaller than the patch along some axis, which are padded with zeros.
    """

    num_cases: int
    problems: tuple[str, ...]
    num_padded: int = 0


def check_bundle(
    bundle_dir: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
) -> DataCheck:
    """Check that labeled data and weights fit a bundle, reading them as ``train.json`` would.

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
        ValueError: the data hold no labeled case, or an earlier version wrote the bundle.
    """
    bundle = Bundle.open(bundle_dir)
    options = data_options(data, datalist)
    config = bundle.config("train")
    if "labeled_cases" not in config:
        raise ValueError(
            f"{str(bundle.path(TRAIN))!r} was written by an earlier version: export the bundle of "
            f"its {SEARCH} anew, and put your models/model.pt into it"
        )
    parser = ConfigParser(config)
    root = check_config_text(str(bundle.root), "bundle path")
    parser.update({"bundle_root": root, **options})
    # The bundle's own Python finds and checks the cases; this module's types are those it has.
    labeled: LabeledCases = parser.get_parsed_content("labeled_cases")
    cases = labeled.cases + labeled.validation
    if not cases:
        raise ValueError(
            f"no labeled case in {str(datalist or data)!r}: it needs imagesTr/CASE_0000 and "
            "labelsTr/CASE, or an MSD datalist"
        )
    problems = _weight_problems(bundle, parser)
    problems += [
        f"label {case!r} has no image with the plan's channels: add imagesTr/{case}_0000, ..."
        for case in labeled.unmatched
    ]
    problems += [
        f"image {name!r} has no label: add labelsTr/CASE, or move the image out of imagesTr"
        for name in labeled.unlabeled
    ]
    problems += [
        f"file {name!r} is of the same case as another: rename or remove it"
        for name in labeled.duplicates
    ]
    without_image = list(labeled.unmatched.values())
    read = Compose(parser.get_parsed_content("reading_transforms"))
    num_padded = 0
    for case in cases:
        if case.get("label") is None:
            problems.append(f"case {case['image']!r} has no label: add one, or leave it out")
        elif case not in without_image:
            problem, share = _check_case(case, read, parser)
            problems += [] if problem is None else [problem]
            num_padded += problem is None and share < 1
    return DataCheck(len(cases), tuple(problems), num_padded)


def _weight_problems(bundle: Bundle, parser: ConfigParser) -> list[str]:
    """Whether ``model.pt`` holds the network that the configs describe."""
    path = bundle.path(WEIGHTS)
    try:
        check_network_size(bundle.config("train"), bundle.path(TRAIN))
        parser.get_parsed_content("network_def").load_state_dict(bundle.weights())
    except FileNotFoundError:
        return [f"{str(path)!r} is missing: export the bundle again"]
    except Exception as error:
        return [
            f"{str(path)!r} does not hold the network of configs/train.json "
            f"({root_cause(error)}): export the bundle again"
        ]
    return []


def _check_case(
    case: Mapping[str, Any], read: Compose, parser: ConfigParser
) -> tuple[str | None, float]:
    """What is wrong with one labeled case, and its smallest share of the patch."""
    name = os.path.basename(case["image"][0] if isinstance(case["image"], list) else case["image"])
    try:
        image = read(dict(case))["image"]
    except Exception as error:
        text = " ".join(str(root_cause(error)).split())
        return (text if text.startswith("case ") else f"case {name!r}: {text}: repair it"), 0.0
    spacing = parser.get("spacing")
    if spacing is not None:
        image = Orientation("RAS", labels=None)(image)
    own = affine_to_spacing(image.affine).tolist()
    crop = parser.get_parsed_content("crop_size")
    share = min(
        size * (step / planned if planned > 0 else 1) / wanted
        for size, step, planned, wanted in zip(
            image.shape[1:], own, spacing or [-1] * len(crop), crop, strict=False
        )
    )
    if share >= 0.5:
        return None, share
    return (
        f"case {name!r}: {tuple(image.shape[1:])} voxels are less than half of the patch "
        f"{tuple(parser['patch_size'])} of the bundle: leave it out, or search again on images "
        "like it"
    ), share
