# Written by monai_xtiny 0.1.0, which need not be installed.
"""What a bundle does beyond MONAI's components: find, check and split cases; save and resume.

This file travels in the bundle as ``scripts/workflow.py``, and imports PyTorch, MONAI, ignite and
nibabel alone. The configs load it by its path, so that it takes no name in ``sys.modules``: one
process may hold several bundles, as MONAI Label does. Axis order is MONAI's: C, *spatial.
"""

from __future__ import annotations

import ast
import atexit
import copy
import difflib
import errno
import glob
import inspect
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, cast

import ignite.distributed as idist
import nibabel
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.bundle import run as run_bundle
from monai.data import NibabelWriter, list_data_collate
from monai.engines import Evaluator, SupervisedEvaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, StatsHandler, TensorBoardStatsHandler
from monai.utils import set_determinism
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

# What MONAI's datasets take: "image", one file or one per channel, and "label", a file.
Case: TypeAlias = dict[str, Any]
PathLike: TypeAlias = "str | os.PathLike[str]"

# Cases that a message names.
_NAMED = 5
# What a NIfTI header says of where its voxels lie, besides pixdim.
_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
# Words that name a mask, in lower case.
_MASK = re.compile(
    "(?:masks?|seg(?:s|mentations?|mented)?|labels?|labelmaps?|lbls?|gts?|(?:ground)?truths?"
    r"|annotations?|annos?|preds?|predictions?|overlays?|rois?|contours?|manual)\d{0,2}"
)
# No text file holds these: control characters, and bytes that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Of the lock files that this process holds: the open file, and the folders made for it. To close
# any other handle of such a file would give the lock up.
_LOCKS: dict[Path, tuple[int, list[Path]]] = {}
if fcntl is not None:
    os.register_at_fork(after_in_child=_LOCKS.clear)  # a worker holds none
# What options may be: whole numbers from the least on, shares (and whether all is one), numbers
# from 0 on (and whether 0 is one), and switches.
_WHOLE = {
    **dict.fromkeys(("epochs", "val_interval", "batch_size", "patches_per_case"), 1),
    **dict.fromkeys(("sw_batch_size",), 1),
    **dict.fromkeys(("fold", "seed", "split_seed", "num_workers"), 0),
}
_SHARES = {"val_fraction": False, "overlap": False, "cache_rate": True}
_NUMBERS = {"learning_rate": False, "max_grad_norm": False, "weight_decay": True, "lr_power": True}
_SWITCHES = ("resume", "amp", "tensorboard")
# What --tracking adds to a config.
_TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")
# What the model card says of the weights' accuracy, between its marks.
_PERFORMANCE = re.compile(
    r"(<!-- xtiny:performance -->).*?(<!-- /xtiny:performance -->)", re.DOTALL
)
_NOT_MEASURED = (
    "Not measured since the network was trained anew: run `python -m monai_xtiny evaluate --bundle "
    "BUNDLE --data DATA`."
)
# What a training's state consists of.
_STATE = ("network", "optimizer", "lr_scheduler", "trainer", "best", "split")


@dataclass(frozen=True)
class LabeledCases:
    """The labeled cases of a data set, and what in its folders fits no case.

    Args:
        source: the folder or datalist, as the user gave it.
        cases: to be split into training and validation.
        validation: those that a datalist keeps for validation.
        unmatched: names of cases that have neither one image nor one per channel.
        unlabeled: images of no case.
        duplicates: files with the name of another, but for the ending.
    """

    source: str
    cases: list[Case]
    validation: list[Case]
    unmatched: dict[str, Case]
    unlabeled: list[str]
    duplicates: list[str]


@dataclass(frozen=True)
class Split:
    """Cases to train on and cases held out."""

    training: list[Case]
    validation: list[Case]

    def label_names(self) -> list[list[str]]:
        """Names of the labels of both parts: what a resumed training must agree on.

        They are paths relative to the folder that holds all labels, wherever that lies.
        """
        parts = [
            [os.path.abspath(str(case.get("label"))) for case in part]
            for part in (self.training, self.validation)
        ]
        folders = {os.path.dirname(label) for part in parts for label in part}
        root = os.path.commonpath(folders) if folders else ""
        return [[os.path.relpath(label, root) for label in part] for part in parts]


@dataclass(frozen=True)
class ImageCases:
    """The cases of a folder of images, to label.

    Args:
        folder: as the user gave it.
        cases: files by the name of the case, one or one per channel.
        unclear: names of cases that have neither one file nor one per channel.
        duplicates: files with the name of another, but for the ending.
        masks: files that are called as the mask of another.
    """

    folder: str
    cases: dict[str, list[str]]
    unclear: list[str]
    duplicates: list[str]
    masks: list[str] = field(default_factory=list)

    @property
    def data(self) -> list[Case]:
        """The cases that are clear, as MONAI's datasets take them."""
        return [{"image": files} for case, files in self.cases.items() if case not in self.unclear]

    @property
    def output_ext(self) -> str:
        """Ending of label files: NIfTI's where there is a NIfTI image, else PNG."""
        files = [file for files in self.cases.values() for file in files]
        return ".nii.gz" if any(map(_is_nifti, files)) else ".png"

    def name_output(self, meta: Mapping[str, Any], _saver: object) -> dict[str, Any]:
        """``output_name_formatter`` of ``SaveImaged``: a label is called as its case."""
        # SaveImage cuts off one ending.
        names = {files[0]: case + ".nii" for case, files in self.cases.items()}
        file = meta["filename_or_obj"]
        return {"subject": names.get(file, file)}


def find_labeled_cases(
    dataset_dir: PathLike,
    datalist: PathLike | None,
    data_root: PathLike,
    *,
    file_endings: Sequence[str],
    in_channels: int,
) -> LabeledCases:
    """Find labeled cases in nnU-Net's folders, or those that an MSD ``dataset.json`` lists.

    Args:
        dataset_dir: holds ``imagesTr/CASE_0000`` (one file per channel, or ``CASE`` with all) and
            ``labelsTr/CASE``.
        datalist: the MSD file, with a ``training`` section and perhaps a ``validation`` section.
        data_root: what the datalist's paths are relative to.
        file_endings: of images and labels, without the dot, in any case.
        in_channels: channels of an image.

    Raises:
        FileNotFoundError: there is no such datalist.
        ValueError: the datalist cannot be read, or holds out what it trains on; masks lie among the
            images; a file is a pipe or a device, or has a name that no text file could hold.
    """
    if datalist:
        return _read_datalist(datalist, data_root)
    images, twice_images = _files_by_name(Path(dataset_dir, "imagesTr"), file_endings)
    labels, twice_labels = _files_by_name(Path(dataset_dir, "labelsTr"), file_endings)
    cases = {
        name: {
            "image": [images[key] for key in _image_names(name, in_channels) if key in images],
            "label": label,
        }
        for name, label in labels.items()
    }
    _refuse_mask_files(images.values())
    used = {file for case in cases.values() for file in case["image"]}
    return LabeledCases(
        source=str(dataset_dir),
        cases=list(cases.values()),
        validation=[],
        unmatched={
            name: case for name, case in cases.items() if len(case["image"]) not in (1, in_channels)
        },
        unlabeled=sorted(set(images.values()) - used),
        duplicates=twice_images + twice_labels,
    )


def find_data_root(
    dataset_dir: PathLike, datalist: PathLike | None, default_dir: PathLike
) -> PathLike:
    """What the paths of cases are relative to: a datalist's own folder unless another is given."""
    if datalist and str(dataset_dir) == str(default_dir):
        return os.path.dirname(os.path.abspath(datalist))
    return dataset_dir


def find_images(
    dataset_dir: PathLike, *, file_endings: Sequence[str], in_channels: int
) -> ImageCases:
    """Find the images in a folder or, if it holds none, in its ``imagesTr``.

    ``CASE_0000``, ``CASE_0001``, ... are the channels of a case where there are as many of them as
    the network has channels; any other file is a case of its own.

    Args:
        dataset_dir: the folder.
        file_endings: without the dot, in any case.
        in_channels: channels of an image.

    Raises:
        ValueError: a file is a pipe or a device, or has a name that no text file could hold.
    """
    images, duplicates = _files_by_name(Path(dataset_dir), file_endings)
    if not images:
        images, duplicates = _files_by_name(Path(dataset_dir, "imagesTr"), file_endings)
    channels = [
        name
        for name in images
        if re.fullmatch(".+_[0-9]{4}", name)
        and int(name[-4:]) < in_channels
        and f"{name[:-4]}0000" in images
        and f"{name[:-4]}{in_channels:04d}" not in images
    ]
    case_of = {name: name[:-5] if name in channels else name for name in images}
    cases = {
        case: [images[key] for key in _image_names(case, in_channels) if case_of.get(key) == case]
        for case in sorted(set(case_of.values()))
    }
    unclear = [
        case
        for case, files in cases.items()
        if len(files) not in (1, in_channels) or case in channels
    ]
    masks = list(_masks_among(images.values()))
    return ImageCases(str(dataset_dir), cases, unclear, duplicates, masks)


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
    for case, patient in zip(labeled.cases, find_patients(labeled.cases, group), strict=True):
        patients.setdefault(patient, []).append(case)
    if labeled.validation and group is not None:
        both = [name for name in find_patients(labeled.validation, group) if name in patients]
        if both:
            raise ValueError(
                f"the patient {both[0]} is in the training and in the validation section of "
                f"{labeled.source}: move all cases of a patient to one of them"
            )
    names = list(patients)
    order = np.random.RandomState(split_seed).permutation(len(names)).tolist()
    share = 0 if labeled.validation else val_fraction * len(names)
    # Rounded, as 0.2 * 15 is more than 3.
    start = min(math.ceil(round(fold * share, 6)), len(names))
    stop = min(math.ceil(round((fold + 1) * share, 6)), len(names), start + len(names) - 1)

    def cases_of(numbers: Sequence[int]) -> list[Case]:
        return [case for number in numbers for case in patients[names[number]]]

    return Split(
        training=cases_of(order[:start] + order[stop:]),
        validation=labeled.validation or cases_of(order[start:stop]),
    )


def find_patients(cases: Sequence[Case], group: str | None) -> list[str]:
    """The patient of each case.

    Args:
        cases: labeled cases.
        group: a regular expression whose first group, or whole match, in the name of a case (with
            its folders, where names repeat) is the patient; or a JSON file that maps names of cases
            to patients; ``None``: each case is a patient of its own.

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
    names = case_names(cases)
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
    lacking = [name for name, patient in zip(names, found, strict=True) if not patient]
    if lacking:
        raise ValueError(
            f"--group {group} finds no patient for the cases {_some(lacking)}: extend it, or leave "
            "them out"
        )
    return [str(patient) for patient in found]


def case_name(case: Case) -> str:
    """Name of a labeled case: that of its label's file without the ending."""
    return _without_ending(os.path.basename(str(case.get("label"))))


def case_names(cases: Sequence[Case]) -> list[str]:
    """Names of labeled cases, with their folders where some are called alike.

    >>> case_names([{"label": "d/p1/seg.nii.gz"}, {"label": "d/p2/seg.nii.gz"}])
    ['p1/seg', 'p2/seg']
    """
    names = [case_name(case) for case in cases]
    if len(set(names)) == len(names):
        return names
    return [
        _without_ending(Path(label).as_posix()) for label in Split(list(cases), []).label_names()[0]
    ]


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
    with _written_whole(file) as part:
        part.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def check_cases(
    labeled: LabeledCases, data: Sequence[Case], *, file_endings: Sequence[str], in_channels: int
) -> None:
    """Refuse labels without their images, and an empty data set.

    Args:
        labeled: what was found.
        data: what is to be trained on.
        file_endings: that were looked for.
        in_channels: channels of an image.

    Raises:
        ValueError: with what to do.
    """
    if labeled.unmatched:
        counts = [len(case["image"]) for case in labeled.unmatched.values()]
        raise ValueError(
            f"the labels {_some(labeled.unmatched)} in {labeled.source}/labelsTr need "
            f"imagesTr/CASE_0000 (one file per channel, {in_channels} channels, or one file with "
            f"all); found {counts[:_NAMED]} files"
        )
    if not data:
        raise ValueError(
            f"no labeled image in {labeled.source}: put imagesTr/CASE_0000 and labelsTr/CASE "
            f"there, as {' '.join(file_endings)}, or pass --dataset_dir FOLDER, or --datalist FILE "
            "for an MSD dataset.json"
        )


def check_unused(labeled: LabeledCases) -> None:
    """Refuse files that would be left out silently.

    Raises:
        ValueError: with what to do.
    """
    if labeled.unlabeled:
        raise ValueError(
            f"no label in labelsTr for the images {_some(labeled.unlabeled)}: add "
            "labelsTr/CASE, or move the images out of imagesTr"
        )
    if labeled.duplicates:
        raise ValueError(f"two files are of one case: rename or remove {_some(labeled.duplicates)}")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a workflow that cannot be meant, and those that no config has.

    Args:
        options: by name.

    Raises:
        ValueError: what an option may be.
    """
    _check_names(sys.argv)
    for name, value in options.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _SWITCHES:
            is_right, allowed = isinstance(value, bool), "True or False"
        elif name in _WHOLE:
            least = _WHOLE[name]
            is_right = is_number and isinstance(value, int) and least <= value < 2**32
            allowed = f"a whole number, {least} or more"
        elif name in _SHARES:
            is_right = is_number and 0 <= value <= 1 and (value < 1 or _SHARES[name])
            allowed = f"a number from 0 to {'1' if _SHARES[name] else 'below 1'}"
        else:
            is_right = is_number and 0 <= value < math.inf and (value > 0 or _NUMBERS[name])
            allowed = f"a number, {'0 or more' if _NUMBERS[name] else 'more than 0'}"
        if not is_right:
            raise ValueError(f"--{name} is {value!r}: give {allowed}")
        if name == "num_workers" and value and multiprocessing.get_start_method() != "fork":
            raise ValueError(
                f"--num_workers is {value}: workers that are not forked cannot take this bundle's "
                "Python: give 0"
            )


def check_shared_memory() -> None:
    """Name what the locks of cached data sets and of workers need.

    Raises:
        OSError: there is no shared memory.
    """
    try:
        _ = [multiprocessing.Lock() for _ in range(64)]  # as a pool and its queues take
    except OSError as error:
        raise OSError(
            f"no shared memory ({error.strerror}): give /dev/shm some room, such as by docker's "
            "--shm-size 1g"
        ) from error


def check_patch(network: nn.Module, **sizes: Sequence[int]) -> None:
    """Refuse patches that the network's strides do not divide, or leave one voxel of.

    Instance norm needs two voxels at least.

    Args:
        network: a network with ``strides`` of its stages; others are not checked.
        sizes: voxels along each axis, by the option's name.

    Raises:
        ValueError: with the sizes that fit.
    """
    strides = getattr(network, "strides", None)
    if not strides:
        return
    steps = [[step] if isinstance(step, int) else step for step in strides]
    axes = max(map(len, steps))
    divisor = [math.prod(step[axis % len(step)] for step in steps) for axis in range(axes)]
    for name, size in sizes.items():
        fits = len(size) == axes and all(
            isinstance(edge, int) and edge > 0 and edge % part == 0
            for edge, part in zip(size, divisor, strict=True)
        )
        if not fits or list(size) == divisor:
            raise ValueError(
                f"--{name} is {list(size)}: give multiples of {divisor}, above that along an axis "
                f"at least, such as {[2 * part for part in divisor]}"
            )


def check_held_out(
    data: Sequence[Case], split_files: Sequence[PathLike], data_root: PathLike
) -> None:
    """Refuse to evaluate on cases that the weights were trained on.

    Args:
        data: the cases to evaluate.
        split_files: datalists that the trainings of the weights wrote; those missing are left out.
        data_root: what their paths are relative to.

    Raises:
        ValueError: with the cases.
    """
    trained: dict[str, PathLike] = {}
    for file in filter(os.path.isfile, split_files):
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        for case in content["training"]:
            # By the ends of the paths, too: two data lists may lie at different depths.
            parts = _path_parts(case["label"])
            trained |= {"/".join(parts[start:]): file for start in range(len(parts))}
    labels = ["/".join(_path_parts(os.path.relpath(case["label"], data_root))) for case in data]
    both = [label for label in labels if label in trained]
    if both:
        raise ValueError(
            f"the network was trained on {_some(map(os.path.basename, both))}, as "
            f"{trained[both[0]]} says: give the --fold, --group, --split_seed and --val_fraction "
            "of its training, or --datalist FILE with other cases in its validation section"
        )


def _path_parts(path: str) -> list[str]:
    """Folders and name of a relative path, of Windows too, without those that lead upwards."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]


@idist.one_rank_only()
def warn_of_missing_classes(dataset: Sequence[Mapping[str, Any]], num_classes: int) -> None:
    """Say which classes and cases of those held out cannot be measured.

    Args:
        dataset: the held-out cases, with ``label`` (1, *spatial).
        num_classes: with the background.
    """
    held: list[set[float]] = []
    empty: list[str] = []
    for index in range(len(dataset)):  # an empty CacheDataset ends no iteration
        label = dataset[index]["label"]
        held.append(set(label.unique().tolist()))
        if held[-1] <= {0}:
            meta = getattr(label, "meta", {})
            empty.append(os.path.basename(str(meta.get("filename_or_obj", "a case"))))
    missing = [str(index) for index in range(1, num_classes) if not any(index in it for it in held)]
    what = ""
    if held and len(empty) == len(held):
        what = (
            f"none of the {len(held)} held-out cases has any foreground ({_some(empty)}), so that "
            "nothing can be measured: the last weights are kept, not the best"
        )
    elif held and missing:
        what = f"no held-out case has voxels of class {_some(missing)}, which is not measured"
    elif empty:
        what = (
            f"{len(empty)} of {len(held)} held-out cases have no foreground, and are not measured "
            f"({_some(empty)})"
        )
    if what:
        print(f"warning: {what}; --fold or --split_seed holds out other cases", flush=True)


def check_fold(split: Split, *, fold: int, val_fraction: float) -> None:
    """Refuse a fold that holds nothing out, unless that was asked for.

    Raises:
        ValueError: with the folds that there are.
    """
    num_cases = len(split.training) + len(split.validation)
    is_wanted = fold == 0 and (val_fraction == 0 or num_cases < 2)
    if not split.validation and not is_wanted:
        raise ValueError(
            f"fold {fold} holds out none of the {num_cases} cases: give --fold from 0 to "
            f"{math.ceil(1 / max(val_fraction, 1e-6)) - 1}, --val_fraction below 1"
        )


def check_evaluation(labeled: LabeledCases, data: Sequence[Case]) -> None:
    """Refuse to evaluate without cases, or with labels that lack their images.

    Raises:
        ValueError: with what to do.
    """
    if labeled.unmatched:
        raise ValueError(
            f"no image, or not one for each channel, for the labels {_some(labeled.unmatched)} in "
            f"{labeled.source}"
        )
    if labeled.duplicates:
        raise ValueError(f"two files are of one case: rename or remove {_some(labeled.duplicates)}")
    if not data:
        raise ValueError(
            f"no labeled image to evaluate in {labeled.source}: it takes imagesTr and labelsTr "
            "with two cases or more and --val_fraction above 0; pass --dataset_dir FOLDER or "
            "--datalist FILE"
        )


def check_images(images: ImageCases, data: Sequence[Case], *, file_endings: Sequence[str]) -> None:
    """Refuse a folder that cannot be labeled case by case.

    Args:
        images: what was found.
        data: what is to be labeled.
        file_endings: that were looked for.

    Raises:
        ValueError: with what to do.
    """
    if not data:
        raise ValueError(
            f"no image in {images.folder} or its imagesTr (looked for {' '.join(file_endings)}): "
            "pass --dataset_dir FOLDER"
        )
    if images.masks:
        _refuse_mask_files(file for files in images.cases.values() for file in files)
    if images.duplicates:
        raise ValueError(f"two images would give one label file: rename {_some(images.duplicates)}")
    outputs: dict[str, str] = {}
    for item in getattr(data, "data", data):  # of a dataset, before it reads
        file = item["image"] if isinstance(item["image"], str) else item["image"][0]
        subject = images.name_output({"filename_or_obj": file}, None)["subject"]
        name = os.path.basename(subject).removesuffix(".gz").rpartition(".")[0]
        other = outputs.setdefault(name, file)
        if other != file:
            raise ValueError(f"the labels of {other} and {file} would be one file: rename an image")


def check_output_dir(found: ImageCases | LabeledCases, output_dir: PathLike) -> None:
    """Refuse to write results where they could take the place of images or labels.

    Args:
        found: what is read.
        output_dir: folder of the results, which need not exist.

    Raises:
        ValueError: the folder is one of the data set's, or holds a link to one of its files.
    """
    output = Path(os.path.realpath(output_dir))
    if output.exists() and not output.is_dir():
        raise ValueError(f"{str(output_dir)!r} is a file: give another --output_dir")
    if isinstance(found, ImageCases):
        files = [file for names in found.cases.values() for file in names]
        sources = [Path(found.folder)]
    else:
        files = [file for case in [*found.cases, *found.validation] for file in _files_of(case)]
        sources = []
    sources += {Path(file).parent for file in files}
    roots = {root for source in sources for root in (source, source.absolute().parent)}
    parts = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
    folders = [*sources, *(root / part for root in roots for part in parts)]
    if _identities([output]) & _identities(folders):
        raise ValueError(
            f"the results in {str(output_dir)!r} would lie among the images or labels: give "
            "another --output_dir"
        )
    taken = _identities(files)
    for file in output.iterdir() if output.is_dir() else ():
        if _identities([file]) & taken:
            raise ValueError(
                f"{str(file)!r} is a link to an image or a label, which a result could replace: "
                "give another --output_dir"
            )


def check_weights(file: str, network: nn.Module) -> None:
    """Refuse weights of another network.

    Args:
        file: a state dict, or one under ``model``.
        network: that the weights are for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or names or shapes differ.
    """
    _read_weights(file, network)


def load_weights(file: str, network: nn.Module) -> None:
    """Put the weights of a file into a network.

    Args:
        file: as :func:`check_weights` takes it.
        network: on any device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: they are not the network's.
    """
    network.load_state_dict(_read_weights(file, network))


class MeanNetwork(nn.Module):
    """Networks of one shape as one: the mean of their logits.

    Args:
        networks: from images (B, C, *spatial) to logits.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Mean logits of an image (B, C, *spatial)."""
        return torch.stack([network(image) for network in self.networks]).mean(dim=0)


def join_networks(network: nn.Module, files: Sequence[str]) -> nn.Module:
    """The network of several files of weights; of one file, the network itself, not loaded.

    Args:
        network: which is loaded with the weights of the first file.
        files: as :func:`check_weights` takes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights are not the network's.
    """
    if len(files) == 1:
        return network
    networks = [network, *(copy.deepcopy(network) for _ in files[1:])]
    for member, file in zip(networks, files, strict=True):
        load_weights(file, member)
    return MeanNetwork(networks)


def check_trained(files: Sequence[str]) -> None:
    """Say that weights are those of an initialization, and refuse them beside trained folds.

    Args:
        files: as :func:`check_weights` takes them.

    Raises:
        ValueError: one is untrained, and other folds lie beside it.
    """
    for file in files:
        if not _is_initialization(_load(file, "train it, or give other weights")):
            continue
        root, ending = os.path.splitext(file)
        folds = sorted(glob.glob(f"{glob.escape(root)}_fold*{glob.escape(ending)}"))
        if folds:
            raise ValueError(
                f"{file} was not trained, but {_some(map(os.path.basename, folds))} beside it: "
                "pass --folds '[1]', say, or --checkpoint FILE"
            )
        print(f"warning: {file} was not trained: its labels mean nothing", flush=True)


def fold_file(file: str, fold: int) -> str:
    """Where a fold keeps a file of its own.

    >>> fold_file("models/model.pt", 0), fold_file("models/model.pt", 2)
    ('models/model.pt', 'models/model_fold2.pt')
    """
    root, ending = os.path.splitext(file)
    return file if fold == 0 else f"{root}_fold{fold}{ending}"


def fold_files(file: str, folds: Sequence[int] | None, given: str) -> list[str]:
    """Files of several folds; without folds, the one that is given.

    Args:
        file: of fold 0.
        folds: their numbers.
        given: the file in use where there are no folds.

    Raises:
        ValueError: ``folds`` are no numbers of folds, or come with another file.
    """
    if folds is None:
        return [given]
    numbers: list[Any] = list(folds) if isinstance(folds, (list, tuple)) else [folds]
    if not numbers or len(set(numbers)) < len(numbers) or not all(map(_is_fold, numbers)):
        raise ValueError(f"--folds is {folds!r}: give numbers of folds, such as '[0, 1, 2]'")
    if given not in map(lambda fold: fold_file(file, fold), [0, *numbers]):
        raise ValueError(f"--folds {folds} and {given} are given: give one of them")
    return [fold_file(file, fold) for fold in numbers]


def fold_folder(folder: str, fold: int) -> str:
    """Folder of a fold's results: that of fold 0 holds those of the others."""
    return folder if fold == 0 else f"{folder}/fold{fold}"


def check_loss(trainer: Engine) -> None:
    """Stop a training whose loss is not a number, before it spoils the weights; a handler.

    Raises:
        ValueError: the loss of this iteration is not a number.
    """
    output = cast(Mapping[str, torch.Tensor], trainer.state.output)
    if torch.isnan(output["loss"]).any():
        raise ValueError(
            f"the loss is not a number in epoch {trainer.state.epoch}: lower --learning_rate, or "
            "look for broken images"
        )


def check_paths(paths: Mapping[str, Any]) -> None:
    """Refuse paths that are not what was typed: MONAI makes numbers of digits, and ``::`` of ``#``.

    Args:
        paths: by the name of the option; ``None`` is not given.

    Raises:
        ValueError: with what to type.
    """
    for name, path in paths.items():
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ValueError(
                f"--{name} is {path!r}, which is no path: write ./NAME for a name of digits"
            )
        if isinstance(path, str) and "::" in path:
            raise ValueError(
                f"--{name} is {path!r}, and MONAI reads '#' as '::': rename the file or folder"
            )


def find_rotated_axes(patch_size: Sequence[int]) -> list[int]:
    """Axes to rotate about: those that are thin, if any, so that voxels stay in their slice.

    >>> find_rotated_axes([64, 64, 12])
    [2]
    >>> find_rotated_axes([64, 64, 48])
    [0, 1, 2]
    """
    thin = [axis for axis, size in enumerate(patch_size) if 3 * size < max(patch_size)]
    return thin or list(range(len(patch_size)))


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """All handlers on rank 0; elsewhere those that write no log."""
    logs = (StatsHandler, TensorBoardStatsHandler)
    return [item for item in handlers if idist.get_rank() == 0 or not isinstance(item, logs)]


class CaseByCase:
    """Label each case apart: one that cannot be labeled is named at the end, after the others.

    It is the ``iteration_update`` of an evaluator whose loader has the dataset of :meth:`guard` and
    the ``collate_fn`` of :meth:`collate`.

    Args:
        images: the cases of the folder.
        in_channels: channels of an image.
    """

    def __init__(self, images: ImageCases, in_channels: int) -> None:
        self.num_labeled = 0
        self.problems = [
            f"{case}: {len(images.cases[case])} files, not 1 or one for each of {in_channels} "
            "channels (CASE_0000, CASE_0001, ...): add what is missing"
            for case in images.unclear
        ]

    def guard(self, dataset: Dataset) -> Dataset:
        """A dataset whose items say what is wrong, where they would raise."""
        return _Guarded(dataset)

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of the items that could be read, and the problems of the others."""
        problems = [item["problem"] for item in items if "problem" in item]
        read = [item for item in items if "problem" not in item]
        try:
            batch = cast(dict[str, Any], list_data_collate(read)) if read else {}
        except RuntimeError:
            batch = {}
            problems += [
                f"{item['image'].meta['filename_or_obj']}: its batch holds images of other sizes: "
                "pass --batch_size 1"
                for item in read
            ]
        return {"problems": problems, "batch": batch} if problems else batch

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """One iteration of the evaluator, post-processing included."""
        if "problems" in batch:
            self.problems += batch["problems"]
            batch = batch["batch"]
            engine.state.batch = batch
        if not batch:
            return {}
        try:
            output = engine._iteration(engine, batch)
        except Exception as error:
            files = batch["image"].meta["filename_or_obj"]
            for file in [files] if isinstance(files, str) else files:
                self.problems.append(_problem_of(file, error))
            return {}
        self.num_labeled += len(batch["image"])
        return output

    def finish(self) -> None:
        """Name the cases that have no label, at the end of all output.

        Raises:
            SystemExit: there are some; MONAI would wrap another error into its own.
        """
        if self.problems:
            count = len(self.problems)
            lines = "\n".join(self.problems)
            raise SystemExit(f"{count} of {count + self.num_labeled} not labeled:\n{lines}")


class LabelWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, for labels that lie where their images lie.

    The label file gets its image's header: sform and qform with their codes, spacing and units.
    MONAI writes one affine for both, and viewers differ in which they take. The file is written
    whole or not at all.
    """

    def set_metadata(
        self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any
    ) -> None:
        """Take the metadata of the image, whose file has the header."""
        super().set_metadata(meta_dict, resample, **options)
        self.image_file = str((meta_dict or {}).get("filename_or_obj", ""))

    def write(self, filename: PathLike, verbose: bool = False, **options: Any) -> None:
        """Write the label.

        Raises:
            ValueError: it is not on the grid of its image.
        """
        if not self.image_file.lower().endswith((".nii", ".nii.gz")):
            super().write(filename, verbose, **options)
            return
        image: Any = nibabel.load(self.image_file)
        label = np.asarray(self.data_obj).astype(self.output_dtype)
        shape = image.shape[:3]
        if label.size != math.prod(shape):
            raise ValueError(f"{self.image_file!r} has shape {shape}, its label {label.shape}")
        with _written_whole(filename, clears=False) as part:  # thousands may lie there
            written = type(image)(label.reshape(shape), None, dtype=label.dtype)
            _copy_geometry(image.header, written.header)
            nibabel.save(written, part)


class GradientClipping:
    """Scale gradients down to a norm, before each step of the optimizer.

    Args:
        network: whose gradients.
        optimizer: its optimizer, for gradients that mixed precision has scaled.
        max_norm: Euclidean norm over all gradients.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, max_norm: float) -> None:
        self.network, self.optimizer, self.max_norm = network, optimizer, max_norm

    def attach(self, trainer: Trainer) -> None:
        """Act after each backward pass of ``trainer``."""
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, trainer: Trainer) -> None:
        """Clip the gradients as they are now."""
        if trainer.scaler is not None:
            trainer.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class Interruption:
    """Stop a training at SIGINT, before its next iteration; at a second SIGINT where it is.

    A ``KeyboardInterrupt`` in the middle of a loader that starts or ends its workers is dropped by
    Python, or leaves them waiting for each other. Workers leave the signal to the process that they
    work for, which ends them.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.process = os.getpid()

    def attach(self, trainer: Trainer, evaluator: Evaluator) -> None:
        """Act while ``trainer`` runs, and in its validations."""
        trainer.add_event_handler(Events.STARTED, self._listen)
        trainer.add_event_handler(Events.COMPLETED, self._restore)
        for engine in (trainer, evaluator):
            for event in (Events.ITERATION_STARTED, Events.EPOCH_COMPLETED):
                engine.add_event_handler(event, self._stop)

    def _listen(self) -> None:
        """Take SIGINT over from Python or from a former training, and from nobody else."""
        former = signal.getsignal(signal.SIGINT)
        is_ours = getattr(former, "__name__", "") == self._remember.__name__
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and (is_ours or former is signal.default_int_handler):
            signal.signal(signal.SIGINT, self._remember)

    def _restore(self) -> None:
        """Give SIGINT back to Python."""
        if signal.getsignal(signal.SIGINT) == self._remember:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, number: int, frame: Any) -> None:
        """The signal's handler, which forked workers inherit."""
        if os.getpid() != self.process:
            return
        if self.is_asked:
            signal.default_int_handler(number, frame)
        self.is_asked = True
        # Nothing buffered, which the signal may have interrupted.
        os.write(2, b"\nstopping before the next iteration\n")

    def _stop(self) -> None:
        """Do what was asked for."""
        if self.is_asked:
            raise KeyboardInterrupt


class BestWeights:
    """Keep the weights of the best validation, as a bare state dict on the CPU.

    ignite's ``Checkpoint`` leaves a stray file behind when it is killed while it writes; here the
    next write takes its place. Weights and the split that they were trained on are written
    together. Trained weights of another training are kept aside before.

    Args:
        network: whose weights.
        file: to write, whole or not at all.
        split: that the network is trained on; ``None``: on cases of another's.
        split_file: datalist of the split.
        data_root: what the paths in the datalist are relative to.
    """

    def __init__(
        self,
        network: nn.Module,
        file: str,
        *,
        split: Split | None = None,
        split_file: str | None = None,
        data_root: PathLike = ".",
    ) -> None:
        self.network, self.file = network, file
        self.split, self.split_file, self.data_root = split, split_file, data_root
        # What this training has written; the file holds another's until then.
        self.written: dict[str, torch.Tensor] | None = None

    def attach(self, evaluator: Evaluator) -> None:
        """Act after each validation by ``evaluator``."""
        Path(self.file).parent.mkdir(parents=True, exist_ok=True)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, evaluator: Evaluator) -> None:
        """Write the weights if this validation was the best so far, or measured nothing."""
        state = evaluator.state
        if not _is_measured(evaluator):
            # The metric of no foreground is undefined: these are no better than the next.
            state.best_metric = state.best_metric_epoch = -1
            self.save()
        elif state.best_metric_epoch == state.epoch:
            self.save()

    def go_on(self, former: Mapping[str, Any]) -> None:
        """Take up the best weights of a training that is gone on with.

        Args:
            former: its state.
        """
        try:
            current = _read_weights(self.file, self.network)
        except (OSError, ValueError):
            current = {}
        best = former.get("best_weights")
        if "best_weights" not in former:  # of an earlier version, which wrote the split at once
            is_own = _read_names(self.split_file or "") == former["split"]
        else:  # without a validation the last weights were written
            is_own = any(_are_equal(current, item) for item in (best, former["network"]))
        if is_own:
            self.written = current
        elif best is not None:
            self._write(best)

    def save(self) -> None:
        """Write the weights as they are now."""
        state = self.network.state_dict()
        self._write({name: value.cpu().clone() for name, value in state.items()})

    def save_unless_validated(self, evaluator: Evaluator) -> None:
        """Write the last weights of a training that had no validation."""
        if evaluator.state.best_metric_epoch <= 0:
            self.save()

    def _write(self, weights: dict[str, torch.Tensor]) -> None:
        """Write weights, and at first the split; what another training wrote is kept aside."""
        is_first = self.written is None
        if is_first and _holds_training(self.file, self.split_file, self.split is not None):
            _keep_aside(self.file, self.split_file)
        _save_whole(weights, self.file)
        if is_first and self.split is not None and self.split_file is not None:
            write_split(self.split, self.split_file, self.data_root)
        self.written = weights


class TrainingState:
    """A training in a file: saved after every epoch, and gone on with by the next run.

    Args:
        file: to read and to write, whole or not at all.
        split: the cases; a training of others is not gone on with.
        network: the network, on any device.
        resume: whether to go on with what the file holds.
        checkpoint: weights that the training starts from.
    """

    def __init__(
        self,
        file: str,
        split: Split,
        network: nn.Module,
        *,
        resume: bool,
        checkpoint: str | None = None,
    ) -> None:
        self.file, self.network = file, network
        self.checkpoint = None if checkpoint is None else os.path.abspath(checkpoint)
        self.label_names = split.label_names()
        self.former: dict[str, Any] = {}
        if resume and os.path.isfile(file):
            advice = "remove it, or pass --resume False, to start anew"
            self.former = _load(file, advice)
            lacking = [name for name in _STATE if name not in self.former]
            if lacking:
                raise ValueError(f"{file} is no state of a training (no {lacking[0]}): {advice}")

    @property
    def former_epoch(self) -> int:
        """Epochs that the file's training has behind it."""
        trainer = self.former.get("trainer")
        return 0 if trainer is None else int(trainer["iteration"] // trainer["epoch_length"])

    def check(self, max_epochs: int) -> None:
        """Refuse to go on with another training, or with one that is over.

        Raises:
            ValueError: with what to do.
        """
        if not self.former:
            return
        anew = "or --resume False to start anew"
        if self.former.get("split") != self.label_names:
            raise ValueError(
                f"the training in {self.file} is of other cases or of another split: pass another "
                f"--output_dir, {anew}"
            )
        if _shapes(self.former["network"]) != _shapes(self.network.state_dict()):
            raise ValueError(
                f"the training in {self.file} is of another network: pass another --output_dir, "
                f"{anew}"
            )
        if self.checkpoint is not None and self.former.get("checkpoint") != self.checkpoint:
            raise ValueError(
                f"the training in {self.file} did not start from {self.checkpoint}: leave "
                f"--checkpoint out to go on, pass another --output_dir, {anew}"
            )
        if self.former_epoch > max_epochs:
            raise ValueError(
                f"the training in {self.file} has {self.former_epoch} epochs already: give "
                f"--epochs above that, {anew}"
            )

    def attach(
        self,
        trainer: Trainer,
        evaluator: Evaluator,
        optimizer: Optimizer,
        lr_scheduler: LambdaLR,
        best_weights: BestWeights | None = None,
        *,
        seed: int,
        save: bool,
    ) -> None:
        """Go on with the file's training, if there is one, and save after every epoch.

        The learning rate and the weight decay are those of this run, not those of the file.

        Args:
            trainer: of the network; its number of epochs is this run's.
            evaluator: whose best metric is kept.
            optimizer: of the network.
            lr_scheduler: of the optimizer.
            best_weights: which the state holds too.
            seed: a resumed training draws otherwise than its first epochs did.
            save: whether to save.
        """
        parts = {
            "network": self.network,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "trainer": trainer,
        }
        if trainer.scaler is not None:
            parts["scaler"] = trainer.scaler
        if self.former:
            set_determinism(seed=seed + self.former_epoch)
            # A training without mixed precision has no scaler.
            known = {name: part for name, part in parts.items() if name in self.former}
            cpu = cast(dict, "cpu")  # which torch.load takes, unlike the annotation
            CheckpointLoader(self.file, known, map_location=cpu).attach(trainer)
            self._attach_settings(trainer, optimizer, lr_scheduler)
            vars(evaluator.state).update(self.former["best"])
            if best_weights is not None:
                best_weights.go_on(self.former)
        if save:
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            trainer.add_event_handler(
                Events.EPOCH_COMPLETED, self._save, parts, evaluator, best_weights
            )

    def _attach_settings(
        self, trainer: Trainer, optimizer: Optimizer, lr_scheduler: LambdaLR
    ) -> None:
        """Put this run's settings back after the state was loaded over them."""
        base_lrs = list(lr_scheduler.base_lrs)
        decays = [group["weight_decay"] for group in optimizer.param_groups]

        def restore() -> None:
            # The batch size may have changed.
            epoch_length = len(trainer.data_loader)  # type: ignore[arg-type]
            trainer.state.epoch_length = epoch_length
            trainer.state.iteration = self.former_epoch * epoch_length
            lr_scheduler.base_lrs = base_lrs
            factors = [factor(lr_scheduler.last_epoch) for factor in lr_scheduler.lr_lambdas]
            for group, base, factor, decay in zip(
                optimizer.param_groups, base_lrs, factors, decays, strict=True
            ):
                group.update(weight_decay=decay, initial_lr=base, lr=base * factor)

        trainer.add_event_handler(Events.STARTED, restore)

    def _save(
        self, parts: Mapping[str, Any], evaluator: Evaluator, best_weights: BestWeights | None
    ) -> None:
        """Write what a later run needs to go on."""
        state = evaluator.state
        content = {
            **{name: part.state_dict() for name, part in parts.items()},
            "best": {name: getattr(state, name) for name in ("best_metric", "best_metric_epoch")},
            "split": self.label_names,
            "checkpoint": self.checkpoint or self.former.get("checkpoint"),
        }
        if best_weights is not None:
            content["best_weights"] = best_weights.written
        _save_whole(content, self.file)


class _Guarded(Dataset):
    """A dataset whose items say what is wrong, where they would raise."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            data = getattr(self.dataset, "data", None)
            files = data[index]["image"] if data else f"image {index}"
            return {"problem": _problem_of(files, error)}


def _problem_of(files: Any, error: BaseException) -> str:
    """What is wrong with a case, in a line that names its file."""
    while error.__cause__ is not None:
        error = error.__cause__
    file = str(files if isinstance(files, (str, os.PathLike)) else files[0])
    # SaveImage puts a traceback into its message, the error last.
    text = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return text if os.path.basename(file) in text else f"{file!r}: {text}"


def _copy_geometry(source: Any, target: Any) -> None:
    """Let a header say where its voxels lie as another one does."""
    for name in _GEOMETRY:
        target[name] = source[name]
    target["pixdim"][:4] = source["pixdim"][:4]


@idist.one_rank_only()
def _save_whole(content: Any, file: str) -> None:
    """Save with PyTorch, so that a kill leaves the former file."""
    with _written_whole(file) as part:
        torch.save(content, part)


@contextmanager
def _written_whole(file: PathLike, *, clears: bool = True) -> Iterator[Path]:
    """A temporary file that takes the place of ``file`` if the block succeeds.

    It has the same name, in a hidden folder beside it that nobody else can guess or enter; what
    killed processes left of such folders goes, if ``clears``.
    """
    target = Path(file)
    prefix = f".{target.name}.tmp."
    lefts = target.parent.glob(glob.escape(prefix) + "*") if clears else ()
    for left in lefts:
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder:
        part = Path(folder, target.name)
        try:
            yield part
        except (OSError, RuntimeError) as error:  # PyTorch's own words name no file
            raise OSError(
                f"{str(file)!r} cannot be written ({error}): is the disk full?"
            ) from error
        os.replace(part, target)


def hold_lock(path: PathLike, *, shared: bool = False) -> bool:
    """Keep other processes from writing a file or folder, until :func:`release_lock` or the end.

    The lock is the kernel's, on a hidden, empty file beside the path: a process that was killed
    holds none, and neither do the workers of a process. Nothing is locked where the file system has
    no locks or a file cannot be made there, and on ranks other than the first.

    Args:
        path: need not exist; the folders above are made, until the lock is released.
        shared: whether others may hold it too, if they share it as well.

    Returns:
        Whether it is held from now on; ``False`` where nothing was locked, or it was already.

    Raises:
        BlockingIOError: another process holds it.
    """
    target, file = _lock_file(path)
    if fcntl is None or file in _LOCKS or idist.get_rank() > 0:
        return False
    made = [folder for folder in file.parents if not folder.exists()]
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:
            _remove_empty(made)
            return False
        try:
            fcntl.lockf(handle, kind | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                file.unlink(missing_ok=True)
                return False
            raise BlockingIOError(
                f"another process writes {str(target)!r} (it holds {str(file)!r}): wait for it, "
                "or end it"
            ) from error
        if os.fstat(handle).st_nlink:
            _LOCKS[file] = handle, made
            return True
        os.close(handle)  # who held it has removed it meanwhile


def lock_training(bundle_root: PathLike, model_file: PathLike) -> None:
    """Keep other processes from writing a bundle, and from training the same weights.

    Trainings that write other weights, of other folds, may run side by side.

    Raises:
        BlockingIOError: another process does.
    """
    is_new = hold_lock(bundle_root, shared=True)
    try:
        hold_lock(model_file)
    except BlockingIOError:
        if is_new:
            release_lock(bundle_root)
        raise


def release_lock(path: PathLike) -> None:
    """Let other processes write again; nothing happens where this process holds no lock."""
    _, file = _lock_file(path)
    _release(file)


@contextmanager
def write_lock(path: PathLike) -> Iterator[None]:
    """Hold a lock on a path during a block, if this process does not hold it already.

    Raises:
        BlockingIOError: another process holds it.
    """
    is_new = hold_lock(path)
    try:
        yield
    finally:
        if is_new:
            release_lock(path)


def _lock_file(path: PathLike) -> tuple[Path, Path]:
    """A path without links, and the file beside it that stands for the right to write it."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(f".{target.name.lstrip('.')}.lock")


@atexit.register
def release_locks() -> None:
    """Release all locks that this process holds, and leave no lock file behind."""
    for file in list(_LOCKS):
        _release(file)


def _release(file: Path) -> None:
    """Remove a lock file while nobody else holds it, then close it."""
    if file not in _LOCKS:
        return
    handle, made = _LOCKS.pop(file)
    with suppress(OSError):
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a shared lock others may be left
        if os.path.samestat(os.fstat(handle), os.stat(file)):  # and not that of another process
            file.unlink()
        _remove_empty(made)
    os.close(handle)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Take away folders that were made for nothing, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _files_of(case: Case) -> list[str]:
    """Image files and label of a case."""
    images = [case["image"]] if isinstance(case["image"], str) else case["image"]
    return [str(file) for file in (*images, case.get("label")) if file]


def _identities(paths: Iterable[PathLike]) -> set[tuple[int, int]]:
    """What the file system knows files and folders by, whatever their names; of those there are."""
    found = set()
    for path in paths:
        with suppress(OSError):
            state = os.stat(path)
            found.add((state.st_dev, state.st_ino))
    return found


def _load(file: str, advice: str) -> dict[str, Any]:
    """What a file of PyTorch holds, which is a dictionary.

    Args:
        file: written by ``torch.save``.
        advice: what to do about a file that cannot be read.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"there is no file {file}: {advice}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:
        # torch advises to load with weights_only=False, which would run code of the file.
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged, or of another kind: {advice}")
    return content


def _read_weights(file: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a network in a file: a state dict, or one under ``model``."""
    content = _load(file, "train it, or give other weights")
    state = content.get("model", content)
    if not isinstance(state, dict) or _shapes(state) != _shapes(network.state_dict()):
        raise ValueError(
            f"the weights in {file} are of another network than network_def: use models/model.pt "
            "of this bundle, or emit the bundle again"
        )
    return state


def _holds_training(file: str, split_file: str | None, is_own: bool) -> bool:
    """Whether there are trained weights that are not just gone on with, as MONAI Label does."""
    if not os.path.isfile(file):
        return False
    if split_file is not None and os.path.isfile(split_file):
        return True
    try:
        is_trained = not _is_initialization(_load(file, ""))
    except (ValueError, AttributeError):
        return True  # somebody's, whatever it is
    return is_own and is_trained


def _is_initialization(state: Mapping[str, Any]) -> bool:
    """Whether norms and biases are the ones and zeros that they start as."""
    values = state.get("model", state).values()
    return all(set(value.tolist()) in ({0.0}, {1.0}) for value in values if value.ndim == 1)


@idist.one_rank_only()
def _keep_aside(file: str, split_file: str | None) -> None:
    """Move what another training wrote to a folder of its own, and say so.

    The weights are copied, as whoever goes on from them may not have read them yet.
    """
    root = Path(os.path.abspath(file)).parent.parent
    folders = (root / f"former_training_{number}" for number in count(1))
    former = next(folder for folder in folders if not folder.exists())
    is_bundle = (root / "configs" / "metadata.json").is_file()  # --ckpt_dir may lie anywhere
    names = ("evaluation.json", "README.md") if is_bundle else ()
    docs = [root / "docs" / name for name in names]
    for path in [Path(os.path.abspath(item)) for item in (file, split_file) if item] + docs:
        if path.is_file():
            inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            (former / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, former / inside)
    if split_file is not None:
        Path(split_file).unlink(missing_ok=True)
    if is_bundle and "_fold" not in os.path.basename(file):  # the card tells of fold 0 alone
        _forget_performance(root / "docs")
    print(f"the weights of the former training are in {former}", flush=True)


def _forget_performance(docs: Path) -> None:
    """Take what the card says of former weights out of it; what was measured is kept aside."""
    (docs / "evaluation.json").unlink(missing_ok=True)
    card = docs / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        renewed = _PERFORMANCE.sub(rf"\1\n{_NOT_MEASURED}\n\2", text)
        if renewed != text:
            with _written_whole(card) as part:
                part.write_text(renewed, encoding="utf-8")


def _read_names(split_file: PathLike) -> list[list[str]] | None:
    """Names of labels in a datalist that a training wrote, as ``Split.label_names``."""
    try:
        content = json.loads(Path(split_file).read_text(encoding="utf-8"))
        return Split(content["training"], content["validation"]).label_names()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _are_equal(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor] | None) -> bool:
    """Whether two state dicts of one network are the same, bit for bit."""
    return bool(state) and other is not None and all(torch.equal(state[k], other[k]) for k in state)


def _is_measured(evaluator: Evaluator) -> bool:
    """Whether the key metric is defined for any class of any case."""
    state = evaluator.state
    details = getattr(state, "metric_details", {}).get(getattr(state, "key_metric_name", None))
    return not torch.is_tensor(details) or bool(torch.isfinite(details).any())


def _is_fold(value: Any) -> bool:
    """Whether a value is the number of a fold."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _files_by_name(folder: Path, endings: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Files by their name without the ending, and those whose name a later one has too."""
    alternatives = "|".join(map(re.escape, endings))
    pattern = re.compile(f"([^.].*)[.](?:{alternatives})", re.IGNORECASE | re.DOTALL)
    matches = [(pattern.fullmatch(file.name), str(file)) for file in sorted(folder.glob("*"))]
    named = [(match[1], file) for match, file in matches if match is not None]
    for _, file in named:
        _check_file(file)
    files = dict(named)
    return files, [file for name, file in named if files[name] != file]


def _image_names(case: str, in_channels: int) -> list[str]:
    """Names that the image files of a case may have: with all channels, or one per channel."""
    return [case, *(f"{case}_{channel:04d}" for channel in range(in_channels))]


def _is_nifti(file: PathLike) -> bool:
    """Whether a file is called as NIfTI; ``scan.nii.png`` is not."""
    return str(file).lower().endswith((".nii", ".nii.gz"))


def _check_file(file: PathLike) -> None:
    """Refuse what may never end to be read, and a name that no text file could hold."""
    name = os.path.basename(file)
    if _UNSAFE.search(name):
        raise ValueError(
            f"the file name {ascii(name)} holds a control character or is not UTF-8: rename it"
        )
    if os.path.exists(file):
        mode = os.stat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{file} is a pipe, socket or device, no file: remove it")


def _refuse_mask_files(files: Iterable[str]) -> None:
    """Refuse images that are called as masks of others."""
    masks = _masks_among(files)
    if masks:
        mask, image = next(iter(masks.items()))
        more = f" (and {len(masks) - 1} more likewise)" if len(masks) > 1 else ""
        raise ValueError(
            f"{mask} looks like a mask beside the image {os.path.basename(image)}{more}: move the "
            "masks into a folder of their own"
        )


def _masks_among(files: Iterable[str]) -> dict[str, str]:
    """Files that are called as the mask of another in their folder, and that one."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        folder, name = os.path.split(file)
        stem = name[:-7] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[0]
        folders[folder][stem] = file
    return {
        stems[mask]: stems[image]
        for stems in folders.values()
        for mask, image in _pair_names(stems).items()
    }


def _pair_names(stems: Iterable[str]) -> dict[str, str]:
    """Names without endings that are those of an image with a word such as mask or seg."""
    words = {stem: _split_name(stem) for stem in stems}
    places = {
        stem: next((i for i, word in enumerate(split) if _MASK.fullmatch(word)), None)
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


def _split_name(stem: str) -> tuple[str, ...]:
    """A name cut into its words, in lower case."""
    joined = re.sub("ground[_. -]+truth", "groundtruth", stem.lower())
    return tuple(re.split("[_. -]+", joined))


def _read_datalist(datalist: PathLike, data_root: PathLike) -> LabeledCases:
    """The cases of an MSD ``dataset.json``."""
    if not os.path.isfile(datalist):
        raise FileNotFoundError(f"no such file: {datalist}: check --datalist")
    try:
        # Windows writes a byte order mark.
        content = json.loads(Path(datalist).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{datalist} is not JSON ({error}): give an MSD dataset.json") from error
    sections: dict[str, list[Case]] = {"training": [], "validation": []}
    if not isinstance(content, dict) or not any(content.get(name) for name in sections):
        raise ValueError(
            f"{datalist} lists no cases: it needs a 'training' list as MSD has; for nnU-Net's "
            "folders pass --dataset_dir FOLDER alone"
        )
    for name, cases in sections.items():
        for index, entry in enumerate(content.get(name) or []):
            where = f"{datalist}: {name}[{index}]"
            if not isinstance(entry, dict) or not entry.get("image"):
                raise ValueError(f"{where} names no 'image': give the path of a file")
            paths = {key: entry[key] for key in ("image", "label") if entry.get(key)}
            cases.append({**entry, **{key: _listed(paths[key], data_root, where) for key in paths}})
    _refuse_shared(sections, str(datalist))
    _refuse_mask_files(
        file for cases in sections.values() for case in cases for file in _image_files(case)
    )
    return LabeledCases(str(datalist), sections["training"], sections["validation"], {}, [], [])


def _listed(paths: Any, data_root: PathLike, where: str) -> Any:
    """One path of a datalist, or several, as they are here."""
    if isinstance(paths, list) and paths:
        return [_listed(path, data_root, where) for path in paths]
    if not isinstance(paths, str):
        raise ValueError(f"{where} has {paths!r} where the path of a file should be: give one")
    file = os.path.normpath(os.path.join(data_root, paths))
    if "\\" in paths and not os.path.lexists(file):  # written under Windows
        file = os.path.normpath(os.path.join(data_root, paths.replace("\\", "/")))
    _check_file(file)
    return file


def _refuse_shared(sections: Mapping[str, Sequence[Case]], datalist: str) -> None:
    """Refuse an image that is listed twice, and a label of both sections."""
    seen: dict[str, str] = {}
    for section, cases in sections.items():
        for index, case in enumerate(cases):
            here = f"{section}[{index}]"
            files = {os.path.realpath(file) for file in _image_files(case)}
            labels = {f"{os.path.realpath(str(case.get('label')))}"} if case.get("label") else set()
            if files & labels:
                raise ValueError(f"{datalist}: {here} has its image as label: give the label")
            for file in files | labels:
                other = seen.setdefault(file, here)
                is_label_twice = file in labels and other.startswith(section)
                if other != here and not is_label_twice:
                    raise ValueError(
                        f"{datalist}: {other} and {here} share {os.path.basename(file)}, so that a "
                        "case could be trained on and held out: list each case once"
                    )


def _image_files(case: Case) -> list[str]:
    """The image files of a case."""
    return [case["image"]] if isinstance(case["image"], str) else list(case["image"])


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a state dict."""
    return {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}


def _check_names(arguments: Sequence[str]) -> None:
    """Refuse options of ``python -m monai.bundle run`` that its configs do not have.

    MONAI adds them to the config, where nothing reads them. What is not understood is let pass:
    paths of keys, configs that are no JSON, and options that others refer to.
    """
    if os.path.join("monai", "bundle") not in arguments[0] or arguments[1:2] != ["run"]:
        return
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    given: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        match = re.fullmatch(r"--([^=#:]+)(?:=(.*))?", argument, re.DOTALL)
        if match is not None:
            # As Fire reads it.
            given[match[1].replace("-", "_")] = match[2] or "".join(
                arguments[number + 1 : number + 2]
            )
    text = given.get("config_file", "")
    try:
        files = ast.literal_eval(text) if text[:1] in ("[", "(") else text.split(",")
        contents = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
        configs = [key for content in contents for key in content]
    except (OSError, ValueError, SyntaxError, TypeError):
        return
    known = {*inspect.signature(run_bundle).parameters, *configs, "workflow_name"}
    known |= {*inspect.signature(ConfigWorkflow).parameters, "help"}
    known |= set(_TRACKING) if "tracking" in given else set()
    unknown = [
        name
        for name in given
        if name not in known
        and name.removeprefix("no") not in known
        and not any(f"@{name}" in argument for argument in arguments)
    ]
    if unknown:
        close = difflib.get_close_matches(unknown[0], configs, 1)
        hint = f" (--{close[0]}?)" if close else ""
        raise ValueError(
            f"no option --{unknown[0]} in {', '.join(map(str, files))}{hint}: its keys are the "
            "options"
        )


def _some(names: Any) -> str:
    """The first of some names."""
    return ", ".join(list(names)[:_NAMED])
