# Written by monai_xtiny 0.2.0, which need not be installed.
"""Which cases are trained on, and which are held out."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np

from .cases import Case, LabeledCases, name_some
from .files import PathLike, written_whole


@dataclass(frozen=True)
class Split:
    """Cases to train on and cases held out."""

    training: list[Case]
    validation: list[Case]

    def label_names(self) -> list[list[str]]:
        """Names of the labels of both parts: what a resumed training must agree on.

        They are paths relative to the folder that holds all labels, wherever that lies.
        """
        parts = [list(map(_label_file, part)) for part in (self.training, self.validation)]
        folders = {os.path.dirname(label) for part in parts for label in part}
        root = os.path.commonpath(folders) if folders else ""
        return [[os.path.relpath(label, root) for label in part] for part in parts]


def split_cases(
    labeled: LabeledCases,
    *,
    fold: int,
    val_fraction: float,
    split_seed: int,
    group: str | None = None,
) -> Split:
    """Hold out a part of the cases, or what a datalist holds out.

    The patients are shuffled; fold 0 holds out the first part, fold 1 the next, so that ``1 /
    val_fraction`` folds hold out every patient once. Without ``group``, each case is a patient.

    Args:
        labeled: the cases.
        fold: number of the part.
        val_fraction: of the patients that a part holds.
        split_seed: of the shuffling.
        group: which cases are of one patient, as :func:`find_patients` takes it.

    Raises:
        ValueError: a case has no patient, or a datalist holds out a patient that is trained on.
    """
    patients: dict[str, list[Case]] = {}
    found = find_patients(labeled.cases, group, labeled=labeled)
    for case, patient in zip(labeled.cases, found, strict=True):
        patients.setdefault(patient, []).append(case)
    if labeled.validation and group is not None:
        held_out = find_patients(labeled.validation, group, labeled=labeled)
        both = [name for name in held_out if name in patients]
        if both:
            raise ValueError(
                f"the patient {both[0]} is in the training and in the validation section of "
                f"{labeled.source}: move all cases of a patient to one of them"
            )
    names = list(patients)
    order = np.random.RandomState(split_seed).permutation(len(names)).tolist()
    places = _held_out_places(fold, len(names), 0 if labeled.validation else val_fraction)

    def cases_of(numbers: Sequence[int]) -> list[Case]:
        return [case for number in numbers for case in patients[names[number]]]

    return Split(
        training=cases_of(order[: places.start] + order[places.stop :]),
        validation=labeled.validation or cases_of(order[places.start : places.stop]),
    )


def _held_out_places(fold: int, num_patients: int, val_fraction: float) -> range:
    """Places in the order of the shuffled patients that a fold holds out."""
    share = val_fraction * num_patients
    # Rounded, as 0.2 * 15 is more than 3.
    start = min(math.ceil(round(fold * share, 6)), num_patients)
    stop = math.ceil(round((fold + 1) * share, 6))
    return range(start, min(stop, num_patients, start + num_patients - 1))


def split_to_evaluate(
    labeled: LabeledCases, *, external: bool = False, section: str = "validation", **options: Any
) -> Split:
    """What an evaluation holds out: as training does, or other data than training's.

    Args:
        labeled: the cases.
        external: whether every labeled case is evaluated, of whatever section.
        section: of a datalist, ``validation`` or ``test``.
        options: of :func:`split_cases`.

    Raises:
        ValueError: there is no such section, or ``external`` is neither true nor false.
    """
    if not isinstance(external, bool):
        raise ValueError(f"--external is {external!r}: give True or False")
    if section not in ("validation", "test"):
        raise ValueError(f"--section is {section!r}: give validation or test")
    if external:
        return Split([], labeled.every)
    if section == "test":
        if not labeled.test:
            raise ValueError(f"{labeled.source} has no test section with labels: add one")
        return Split([], labeled.test)
    return split_cases(labeled, **options)


def find_patients(
    cases: Sequence[Case], group: str | None, *, labeled: LabeledCases | None = None
) -> list[str]:
    """The patient of each case.

    Args:
        cases: labeled cases.
        group: a regular expression whose first group, or whole match, in the name of a case (with
            its folders, where names repeat) is the patient; or a JSON file that maps names of cases
            to patients; ``None``: each case is a patient of its own.
        labeled: the data that the cases are some of, as :func:`case_names` takes it.

    Raises:
        ValueError: a case has no patient, or ``group`` is neither.

    >>> cases = [{"label": f"{name}.nii.gz"} for name in ("p1_a", "p1_b", "p2_a")]
    >>> find_patients(cases, "(p[0-9]+)_")
    ['p1', 'p1', 'p2']
    """
    if group is None:
        return [str(number) for number in range(len(cases))]
    if not isinstance(group, str):
        raise ValueError(f"--group is read as {group!r}: put it in two pairs of quotes, \"'...'\"")
    names = case_names(cases, labeled)
    if group.endswith(".json"):
        known = json.loads(Path(group).read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            raise ValueError(f"{group} is no JSON object of cases and their patients: write one")
        found = [known.get(name) for name in names]
    else:
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise ValueError(f"--group {group} is no regular expression: {error}") from None
        matches = [pattern.search(name) for name in names]
        found = [match and match[min(pattern.groups, 1)] for match in matches]
    lacking = [name for name, patient in zip(names, found, strict=True) if patient in (None, "")]
    if lacking:
        raise ValueError(
            f"--group {group} finds no patient for the cases {name_some(lacking)}: extend it, or "
            "leave them out"
        )
    return [str(patient) for patient in found]


def case_name(case: Case) -> str:
    """Name of a labeled case: that of its label's file without the ending."""
    return _without_ending(os.path.basename(str(case.get("label"))))


def case_names(cases: Sequence[Case], labeled: LabeledCases | None = None) -> list[str]:
    """Names of labeled cases, with their folders where some of the data are called alike.

    Args:
        cases: to be named.
        labeled: the data that they are some of: cases that are held out have the names that they
            have beside those that are trained on; ``None``: they are all.

    >>> case_names([{"label": "d/p1/seg.nii.gz"}, {"label": "d/p2/seg.nii.gz"}])
    ['p1/seg', 'p2/seg']
    """
    every = [] if labeled is None else labeled.cases + labeled.validation
    known = set(map(_label_file, every))
    every = every + [case for case in cases if _label_file(case) not in known]
    names = [case_name(case) for case in every]
    if len(set(names)) < len(names):
        labels = Split(every, []).label_names()[0]
        names = [_without_ending(Path(label).as_posix()) for label in labels]
    name_of = dict(zip(map(_label_file, every), names, strict=True))
    return [name_of[_label_file(case)] for case in cases]


def _label_file(case: Case) -> str:
    """Where the label of a case lies."""
    return os.path.abspath(str(case.get("label")))


def _without_ending(name: str) -> str:
    """A name without its ending; ``.nii.gz`` is one."""
    return name.removesuffix(".gz").rsplit(".", 1)[0]


@idist.one_rank_only()
def write_split(split: Split, file: PathLike, data_root: PathLike) -> None:
    """Write a split as an MSD datalist, with paths relative to ``data_root``."""

    def relative(case: Case) -> Case:
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        return {
            "image": [Path(os.path.relpath(image, data_root)).as_posix() for image in images],
            "label": Path(os.path.relpath(case["label"], data_root)).as_posix(),
        }

    content = {
        "description": "the cases that the network was trained on and those held out, relative to "
        "the data set",
        "training": [relative(case) for case in split.training],
        "validation": [relative(case) for case in split.validation],
    }
    with written_whole(file) as part:
        part.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def check_fold(split: Split, *, fold: int, val_fraction: float, group: str | None = None) -> None:
    """Refuse a fold that holds nothing out, unless that was asked for.

    Args:
        split: of the fold.
        fold: its number.
        val_fraction: of the patients that a fold holds.
        group: which cases are of one patient, as :func:`find_patients` takes it.

    Raises:
        ValueError: with the folds that hold cases out.
    """
    num_cases = len(split.training)
    is_whole = val_fraction == 0 or num_cases < 2
    if split.validation or (fold == 0 and is_whole):
        return
    num_patients = len(set(find_patients(split.training, group)))
    folds = [0]
    if not is_whole:
        numbers = range(math.ceil(1 / max(val_fraction, 1e-6)))
        folds = [it for it in numbers if _held_out_places(it, num_patients, val_fraction)]
    if not folds:
        advice = "give a --group that tells patients apart, or --val_fraction 0 to train on all"
    elif len(folds) > 1 and folds[-1] == len(folds) - 1:
        advice = f"give --fold from 0 to {folds[-1]}"
    else:
        advice = f"give --fold {name_some(map(str, folds))}"
    patients = "" if group is None else f" of {num_patients} patient{'s' * (num_patients > 1)}"
    raise ValueError(f"fold {fold} holds out none of the {num_cases} cases{patients}: {advice}")


def read_names(split_file: PathLike) -> list[list[str]] | None:
    """Names of labels in a datalist that a training wrote, as ``Split.label_names``."""
    try:
        content = json.loads(Path(split_file).read_text(encoding="utf-8"))
        return Split(content["training"], content["validation"]).label_names()
    except (OSError, ValueError, KeyError, TypeError):
        return None
