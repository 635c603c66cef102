"""What does not fit is said before the first step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from torch import nn

from .cases import NAMED, Case, ImageCases, LabeledCases, files_of, name_some
from .files import PathLike, identities
from .folds import splits_of
from .masks import refuse_mask_files

_OTHER_CASES = (
    "give the --fold, --group, --split_seed and --val_fraction of its training, or --datalist FILE "
    "with other cases in its validation section"
)
_OTHER_START = (
    "give --checkpoint FILE of weights that have not seen them (those before that training are "
    "in former_training_1, if it kept any), or the --fold, --group and --split_seed of its training"
)


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
            f"the labels {name_some(labeled.unmatched)} in {labeled.source}/labelsTr need "
            f"imagesTr/CASE_0000 (one file per channel, {in_channels} channels, or one file with "
            f"all); found {counts[:NAMED]} files"
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
            f"no label in labelsTr for the images {name_some(labeled.unlabeled)}: add "
            "labelsTr/CASE, or move the images out of imagesTr"
        )
    if labeled.duplicates:
        raise ValueError(
            f"two files are of one case: rename or remove {name_some(labeled.duplicates)}"
        )


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
    data: Sequence[Case],
    split_files: Sequence[PathLike],
    data_root: PathLike,
    *,
    external: bool = False,
    advice: str = _OTHER_CASES,
) -> None:
    """Refuse to evaluate on cases that the weights were trained on.

    Args:
        data: the cases to evaluate.
        split_files: datalists that the trainings of the weights wrote; without any a warning says
            that nobody knows.
        data_root: what their paths are relative to.
        external: whether the data are others than those of the training, where files may be called
            alike: this is said, and not refused.
        advice: what to do.

    Raises:
        ValueError: with the cases.
    """
    files = list(filter(os.path.isfile, split_files))
    trained: set[str] = set()
    whole: set[str] = set()
    for file in files:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        for case in content["training"]:
            # By the ends of the paths, too: two data lists may lie at different depths.
            ends = _path_ends(case["label"])
            trained.update(ends)
            whole.add(ends[0])
    known = [_path_ends(os.path.relpath(case["label"], data_root)) for case in data]
    labels = [ends[0] for ends in known]
    both = [ends[0] for ends in known if ends[0] in trained or whole.intersection(ends)]
    if not files and not external:
        print(
            "warning: no datalist lies beside the weights or among their bundle's configs, so "
            "that they may have been trained on cases that are held out here",
            flush=True,
        )
    names = name_some(map(os.path.basename, both))
    if both and external:
        print(
            f"warning: {len(both)} of {len(labels)} labels are called as ones that the network was "
            f"trained on ({names}): --external takes them for other cases",
            flush=True,
        )
    elif both:
        raise ValueError(
            f"the network was trained on {names}, as {name_some(map(str, files))} says: {advice}"
        )


def check_start(checkpoint: str, held_out: Sequence[Case], data_root: PathLike) -> None:
    """Refuse to start from weights that were trained on what this training holds out.

    Args:
        checkpoint: file of the weights.
        held_out: cases to validate on.
        data_root: what the paths in the split of the weights are relative to.

    Raises:
        ValueError: with the cases.
    """
    check_held_out(held_out, splits_of([checkpoint]), data_root, advice=_OTHER_START)


def _path_ends(path: str) -> list[str]:
    """A relative path, of Windows too, whole and without its first folders, shorter and shorter.

    Folders that lead upwards count for nothing.

    >>> _path_ends("../labelsTr/a.png")
    ['labelsTr/a.png', 'a.png']
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


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
            f"none of the {len(held)} held-out cases has any foreground ({name_some(empty)}), so "
            "that nothing can be measured: the last weights are kept, not the best"
        )
    elif held and missing:
        what = f"no held-out case has voxels of class {name_some(missing)}, which is not measured"
    elif empty:
        what = (
            f"{len(empty)} of {len(held)} held-out cases have no foreground, and are not measured "
            f"({name_some(empty)})"
        )
    if what:
        print(f"warning: {what}; --fold or --split_seed holds out other cases", flush=True)


def check_evaluation(labeled: LabeledCases, data: Sequence[Case]) -> None:
    """Refuse to evaluate without cases, or with labels that lack their images.

    Raises:
        ValueError: with what to do.
    """
    if labeled.unmatched:
        raise ValueError(
            "no image, or not one for each channel, for the labels "
            f"{name_some(labeled.unmatched)} in {labeled.source}"
        )
    if labeled.duplicates:
        raise ValueError(
            f"two files are of one case: rename or remove {name_some(labeled.duplicates)}"
        )
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
        refuse_mask_files(file for files in images.cases.values() for file in files)
    if images.duplicates:
        raise ValueError(
            f"two images would give one label file: rename {name_some(images.duplicates)}"
        )
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
        files = [file for case in [*found.cases, *found.validation] for file in files_of(case)]
        sources = []
    sources += {Path(file).parent for file in files}
    roots = {root for source in sources for root in (source, source.absolute().parent)}
    parts = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
    folders = [*sources, *(root / part for root in roots for part in parts)]
    if identities([output]) & identities(folders):
        raise ValueError(
            f"the results in {str(output_dir)!r} would lie among the images or labels: give "
            "another --output_dir"
        )
    taken = identities(files)
    for file in output.iterdir() if output.is_dir() else ():
        if identities([file]) & taken:
            raise ValueError(
                f"{str(file)!r} is a link to an image or a label, which a result could replace: "
                "give another --output_dir"
            )
