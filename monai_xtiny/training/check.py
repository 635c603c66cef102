"""Labeled data against a bundle, before anything is trained."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser
from monai.data.utils import affine_to_spacing
from monai.transforms import Compose, Orientation

from monai_xtiny.bundle.folder import SEARCH, TRAIN, WEIGHTS, Bundle
from monai_xtiny.bundle.weights import check_network_size
from monai_xtiny.bundled.cases import LabeledCases
from monai_xtiny.bundled.splits import Split, case_names, check_fold
from monai_xtiny.data.case import Case, Header
from monai_xtiny.plan.data_set import describe_data_set
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.system.config_text import check_config_text
from monai_xtiny.system.errors import innermost, root_cause
from monai_xtiny.training.labeled import data_options

# Names that begin with a patient's number, such as "SC-HF-I-01-0048" or "patient3_slice7".
_PATIENT = "^(.*[0-9].*)[-_. ][^-_. ]+$"


@dataclass(frozen=True)
class DataCheck:
    """What a pre-flight found.

    Args:
        num_cases: labeled cases that training and validation would use.
        problems: one line per case that does not fit, each with what to do.
        num_padded: cases smaller than the patch along some axis, which are padded with zeros.
        summary: what was found, in words.
        warnings: one line per doubt about a training on these cases.
    """

    num_cases: int
    problems: tuple[str, ...]
    num_padded: int = 0
    summary: str = ""
    warnings: tuple[str, ...] = ()


def check_bundle(
    bundle_dir: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    group: str | None = None,
    fold: int | None = 0,
) -> DataCheck:
    """Check that labeled data and weights fit a bundle, reading them as ``train.json`` would.

    Args:
        bundle_dir: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD ``dataset.json``; one of the two is needed.
        group: which cases are of one patient: a regular expression or a JSON file, as training
            takes it.
        fold: of the split that is looked at; ``None``: fold 0, which may hold nothing out, as of a
            race, which says by itself what it cannot compare.

    Returns:
        The number of cases, and every problem: an image without a label or a label without an
        image, a channel count other than the plan's, a label of another shape than its image, a
        label value that is no class, an image of less than half a patch along some axis,
        weights of another network. Smaller shortfalls are padded, by nnU-Net's rule, and counted.
        Warnings name classes that no case holds, in the training or in the held-out part, and
        cases that may be of one patient.

    Raises:
        FileNotFoundError: there is no bundle, or no data.
        ValueError: the data hold no labeled case, the fold holds nothing out, or an earlier version
            wrote the bundle.
    """
    bundle = Bundle.open(bundle_dir)
    options = {**data_options(data, datalist, group), "fold": fold or 0}
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
    labeled: LabeledCases = _parsed(parser, "labeled_cases")
    cases = labeled.cases + labeled.validation
    if not cases:
        raise ValueError(
            f"no labeled case in {str(datalist or data)!r}: it needs imagesTr/CASE_0000 and "
            "labelsTr/CASE, or an MSD datalist"
        )
    split: Split = _parsed(parser, "split")  # refuses a group that finds no patients
    if fold is not None:
        val_fraction = parser.get_parsed_content("val_fraction")
        check_fold(split, fold=fold, val_fraction=val_fraction, group=parser.get("group"))
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
    read = _NotingReader(Compose(parser.get_parsed_content("reading_transforms")), bundle.plan)
    # Looked up once: MONAI compares a key that is not there with every other.
    sizes = (parser.get_parsed_content("crop_size"), parser["patch_size"], parser.get("spacing"))
    num_padded = 0
    held: dict[str, set[int]] = {}
    for case in cases:
        if case.get("label") is None:
            problems.append(f"case {case['image']!r} has no label: add one, or leave it out")
        elif case not in without_image:
            problem, share, classes = _check_case(case, read, *sizes)
            problems += [] if problem is None else [problem]
            num_padded += problem is None and share < 1
            held[str(case["label"])] = classes
    warnings = _class_warnings(split, held, bundle.label_names)
    warnings += _patient_warnings(cases) if group is None else []
    return DataCheck(len(cases), tuple(problems), num_padded, read.describe(cases), tuple(warnings))


def _parsed(parser: ConfigParser, name: str) -> Any:
    """What a key of a config is; an error in its own words, not in those that MONAI wraps it in."""
    try:
        return parser.get_parsed_content(name)
    except RuntimeError as error:
        raise innermost(error) from None


def _class_warnings(
    split: Split, held: Mapping[str, Iterable[int]], label_names: Sequence[str]
) -> list[str]:
    """The classes without voxels in a part of the split."""
    warnings = []
    for part, cases in (("to train on", split.training), ("held out", split.validation)):
        found = {index for case in cases for index in held.get(str(case.get("label")), ())}
        missing = [name for index, name in enumerate(label_names) if index and index not in found]
        if cases and missing:
            warnings.append(
                f"none of the {len(cases)} cases {part} has voxels of {', '.join(missing)}: label "
                "more cases, or split them otherwise by --fold or --split_seed"
            )
    return warnings


def _patient_warnings(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether cases are named as several files of a patient are."""
    names = case_names([dict(case) for case in cases if case.get("label") is not None])
    matches = [re.search(_PATIENT, name) for name in names]
    counts = Counter(match[1] for match in matches if match is not None)
    shared = {patient: number for patient, number in counts.items() if number > 1}
    if len(shared) < 2 or 2 * sum(shared.values()) < len(names):
        return []
    first = next(iter(shared))
    own = [name for name, match in zip(names, matches, strict=True) if match and match[1] == first]
    return [
        f"cases such as {own[0]} and {own[1]} look like files of one patient ({len(counts)} "
        f"patients): hold out whole patients by --group '{_PATIENT}', or another expression whose "
        "first group in the name of a case is the patient"
    ]


class _NotingReader:
    """Reads cases, and notes what their headers say.

    Args:
        read: MONAI dictionary transform.
        plan: of the bundle.
    """

    def __init__(self, read: Compose, plan: UNetPlan) -> None:
        self._read, self._plan = read, plan
        self._headers: list[Header] = []

    def __call__(self, case: dict[str, Any]) -> Any:
        content = self._read(case)
        image = content["image"]
        if image.ndim == 4:
            image = Orientation("RAS", labels=None)(image)
        spacing = affine_to_spacing(image.affine).tolist()[: image.ndim - 1]
        self._headers.append(Header(tuple(image.shape[1:]), tuple(spacing), len(image)))
        return content

    def describe(self, cases: Sequence[Mapping[str, Any]]) -> str:
        """What was found, in words."""
        if not self._headers:
            return f"found {len(cases)} labeled cases, none of which can be read"
        images = [case["image"] for case in cases]
        files = [[image] if isinstance(image, str) else image for image in images]
        found = [Case(str(paths), tuple(paths), "") for paths in files]
        return describe_data_set(found, self._headers, self._plan)


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
    case: Mapping[str, Any],
    read: Callable[..., Any],
    crop: Sequence[int],
    patch: Sequence[int],
    spacing: Sequence[float] | None,
) -> tuple[str | None, float, set[int]]:
    """What is wrong with one labeled case, its smallest share of the patch, and its classes.

    Args:
        case: image and label.
        read: reads it.
        crop: size in voxels that a training takes.
        patch: size in voxels of the plan.
        spacing: that images are resampled to, in mm; ``None``: they are not.
    """
    name = os.path.basename(case["image"][0] if isinstance(case["image"], list) else case["image"])
    try:
        content = read(dict(case))
    except Exception as error:
        text = " ".join(str(root_cause(error)).split())
        problem = text if name in text else f"case {name!r}: {text}: repair it"
        return problem, 0.0, set()
    image, classes = content["image"], {int(value) for value in content["label"].unique()}
    if spacing is not None:
        image = Orientation("RAS", labels=None)(image)
    own = affine_to_spacing(image.affine).tolist()
    share = min(
        size * (step / planned if planned > 0 else 1) / wanted
        for size, step, planned, wanted in zip(
            image.shape[1:], own, spacing or [-1] * len(crop), crop, strict=False
        )
    )
    if share >= 0.5:
        return None, share, classes
    return (
        (
            f"case {name!r}: {tuple(image.shape[1:])} voxels are less than half of the patch "
            f"{tuple(patch)} of the bundle: leave it out, or search again on images "
            "like it"
        ),
        share,
        classes,
    )
