# Written by monai_xtiny 0.1.0, which need not be installed.
"""What a bundle does beyond MONAI's components: find, check and split cases; save and resume.

This file travels in the bundle as ``scripts/workflow.py``, and imports PyTorch, MONAI and ignite
alone. The configs load it by its path, so that it takes no name in ``sys.modules``: one process may
hold several bundles, as MONAI Label does. Axis order is MONAI's: C, *spatial.
"""

from __future__ import annotations

import atexit
import errno
import glob
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor, load_decathlon_datalist
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, StatsHandler, TensorBoardStatsHandler
from monai.utils import set_determinism
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

# What MONAI's datasets take: "image", one file or one per channel, and "label", a file.
Case: TypeAlias = dict[str, Any]
PathLike: TypeAlias = "str | os.PathLike[str]"

# A label further from its image than this, in voxels, is of another grid.
_MAX_MISPLACEMENT = 0.1
# Cases that a message names.
_NAMED = 5
# Of the lock files that this process holds: the open file, and the folders made for it. To close
# any other handle of such a file would give the lock up.
_LOCKS: dict[Path, tuple[int, list[Path]]] = {}
if fcntl is not None:
    os.register_at_fork(after_in_child=_LOCKS.clear)  # a worker holds none


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
        """File names of the labels of both parts: what a resumed training must agree on."""
        parts = (self.training, self.validation)
        return [[os.path.basename(str(case.get("label"))) for case in part] for part in parts]


@dataclass(frozen=True)
class ImageCases:
    """The cases of a folder of images, to label.

    Args:
        folder: as the user gave it.
        cases: files by the name of the case, one or one per channel.
        unclear: names of cases that have neither one file nor one per channel.
        duplicates: files with the name of another, but for the ending.
    """

    folder: str
    cases: dict[str, list[str]]
    unclear: list[str]
    duplicates: list[str]

    @property
    def data(self) -> list[Case]:
        """The cases as MONAI's datasets take them."""
        return [{"image": files} for files in self.cases.values()]

    @property
    def output_ext(self) -> str:
        """Ending of label files: NIfTI's where there is a NIfTI image, else PNG."""
        files = [os.path.basename(file) for files in self.cases.values() for file in files]
        return ".nii.gz" if any(".nii" in file.lower() for file in files) else ".png"

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
    return ImageCases(str(dataset_dir), cases, unclear, duplicates)


def split_cases(labeled: LabeledCases, *, fold: int, val_fraction: float, split_seed: int) -> Split:
    """Hold out a part of the cases, or what a datalist holds out.

    The cases are shuffled; fold 0 holds out the first part, fold 1 the next, so that ``1 /
    val_fraction`` folds hold out every case once.

    Args:
        labeled: the cases.
        fold: number of the part.
        val_fraction: of the cases that a part holds.
        split_seed: of the shuffling.
    """
    cases = labeled.cases
    order = np.random.RandomState(split_seed).permutation(len(cases)).tolist()
    share = 0 if labeled.validation else val_fraction * len(cases)
    # Rounded, as 0.2 * 15 is more than 3.
    start = min(math.ceil(round(fold * share, 6)), len(cases))
    stop = min(math.ceil(round((fold + 1) * share, 6)), len(cases), start + len(cases) - 1)
    return Split(
        training=[cases[index] for index in order[:start] + order[stop:]],
        validation=labeled.validation or [cases[index] for index in order[start:stop]],
    )


@idist.one_rank_only()
def write_split(split: Split, file: PathLike, data_root: PathLike) -> None:
    """Write a split as an MSD datalist, with paths relative to ``data_root``."""

    def relative(case: Case) -> Case:
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        return {
            "image": [os.path.relpath(image, data_root) for image in images],
            "label": os.path.relpath(case["label"], data_root),
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
    if not data:
        raise ValueError(
            f"no labeled image to evaluate in {labeled.source}: it takes imagesTr and labelsTr "
            "with two cases or more and --val_fraction above 0; pass --dataset_dir FOLDER or "
            "--datalist FILE"
        )


def check_images(
    images: ImageCases, data: Sequence[Case], *, file_endings: Sequence[str], in_channels: int
) -> None:
    """Refuse a folder that cannot be labeled case by case.

    Args:
        images: what was found.
        data: what is to be labeled.
        file_endings: that were looked for.
        in_channels: channels of an image.

    Raises:
        ValueError: with what to do.
    """
    if not data:
        raise ValueError(
            f"no image in {images.folder} or its imagesTr (looked for {' '.join(file_endings)}): "
            "pass --dataset_dir FOLDER"
        )
    if images.unclear:
        raise ValueError(
            f"expected 1 file or one for each of {in_channels} channels for the case "
            f"{_some(images.unclear)} in {images.folder}"
        )
    if images.duplicates:
        raise ValueError(f"two images would give one label file: rename {_some(images.duplicates)}")


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
        ValueError: names or shapes differ.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    if _shapes(state.get("model", state)) != _shapes(network.state_dict()):
        raise ValueError(
            f"the weights in {file} are of another network than network_def: use models/model.pt "
            "of this bundle, or emit the bundle again"
        )


def check_case(
    data: dict[str, Any], *, in_channels: int, num_classes: int, spatial_dims: int
) -> dict[str, Any]:
    """Refuse a case that would spoil the training; a transform of the dictionary that was read.

    Args:
        data: ``image`` (C, *spatial) and ``label`` (1, *spatial), on the grid of their files.
        in_channels: channels of an image.
        num_classes: labels are 0 to ``num_classes - 1``.
        spatial_dims: axes of an image.

    Returns:
        The same dictionary.

    Raises:
        ValueError: what is wrong with which case.
    """
    problem = _find_problem(data["image"], data["label"], in_channels, num_classes, spatial_dims)
    if problem is not None:
        name = os.path.basename(str(data["label"].meta.get("filename_or_obj", "label")))
        raise ValueError(f"case {name}: {problem}")
    return data


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


class BestWeights:
    """Keep the weights of the best validation, as a bare state dict on the CPU.

    ignite's ``Checkpoint`` leaves a stray file behind when it is killed while it writes; here the
    next write takes its place.

    Args:
        network: whose weights.
        file: to write, whole or not at all.
    """

    def __init__(self, network: nn.Module, file: str) -> None:
        self.network, self.file = network, file

    def attach(self, evaluator: Evaluator) -> None:
        """Act after each validation by ``evaluator``."""
        Path(self.file).parent.mkdir(parents=True, exist_ok=True)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, evaluator: Evaluator) -> None:
        """Write the weights if this validation was the best so far."""
        if evaluator.state.best_metric_epoch == evaluator.state.epoch:
            self.save()

    def save(self) -> None:
        """Write the weights as they are now."""
        state = self.network.state_dict()
        _save_whole({name: value.cpu() for name, value in state.items()}, self.file)

    def save_unless_validated(self, evaluator: Evaluator) -> None:
        """Write the last weights of a training that had no validation."""
        if evaluator.state.best_metric_epoch <= 0:
            self.save()


class TrainingState:
    """A training in a file: saved after every epoch, and gone on with by the next run.

    Args:
        file: to read and to write, whole or not at all.
        split: the cases; a training of others is not gone on with.
        network: the network, on any device.
        resume: whether to go on with what the file holds.
    """

    def __init__(self, file: str, split: Split, network: nn.Module, *, resume: bool) -> None:
        self.file, self.network = file, network
        self.label_names = split.label_names()
        self.former: dict[str, Any] = {}
        if resume and os.path.isfile(file):
            self.former = torch.load(file, map_location="cpu", weights_only=True)

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
        if save:
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            trainer.add_event_handler(Events.EPOCH_COMPLETED, self._save, parts, evaluator)

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

    def _save(self, parts: Mapping[str, Any], evaluator: Evaluator) -> None:
        """Write what a later run needs to go on."""
        state = evaluator.state
        content = {
            **{name: part.state_dict() for name, part in parts.items()},
            "best": {name: getattr(state, name) for name in ("best_metric", "best_metric_epoch")},
            "split": self.label_names,
        }
        _save_whole(content, self.file)


@idist.one_rank_only()
def _save_whole(content: Any, file: str) -> None:
    """Save with PyTorch, so that a kill leaves the former file."""
    with _written_whole(file) as part:
        torch.save(content, part)


@contextmanager
def _written_whole(file: PathLike) -> Iterator[Path]:
    """A temporary file that takes the place of ``file`` if the block succeeds.

    It has the same name, in a hidden folder beside it that nobody else can guess or enter; what
    killed processes left of such folders goes.
    """
    target = Path(file)
    prefix = f".{target.name}.tmp."
    for left in target.parent.glob(glob.escape(prefix) + "*"):
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


def _files_by_name(folder: Path, endings: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Files by their name without the ending, and those whose name a later one has too."""
    alternatives = "|".join(map(re.escape, endings))
    pattern = re.compile(f"([^.].*)[.](?:{alternatives})", re.IGNORECASE)
    matches = [(pattern.fullmatch(file.name), str(file)) for file in sorted(folder.glob("*"))]
    named = [(match[1], file) for match, file in matches if match is not None]
    files = dict(named)
    return files, [file for name, file in named if files[name] != file]


def _image_names(case: str, in_channels: int) -> list[str]:
    """Names that the image files of a case may have: with all channels, or one per channel."""
    return [case, *(f"{case}_{channel:04d}" for channel in range(in_channels))]


def _read_datalist(datalist: PathLike, data_root: PathLike) -> LabeledCases:
    """The cases of an MSD ``dataset.json``."""

    def read(section: str) -> list[Case]:
        return load_decathlon_datalist(datalist, data_list_key=section, base_dir=data_root)

    content = json.loads(Path(datalist).read_text(encoding="utf-8"))
    validation = read("validation") if content.get("validation") else []
    return LabeledCases(str(datalist), read("training"), validation, {}, [], [])


def _find_problem(
    image: MetaTensor, label: MetaTensor, in_channels: int, num_classes: int, spatial_dims: int
) -> str | None:
    """The first thing that is wrong with a case, and what to do."""
    if len(image) != in_channels:
        return (
            f"the image has {len(image)} channels, and the network takes {in_channels}: convert "
            "the image"
        )
    if len(label) != 1:
        return f"the label has {len(label)} channels: save class indices as one"
    if image.ndim - 1 != spatial_dims:
        return (
            f"the image has {image.ndim - 1} dimensions, and the bundle reads images of "
            f"{spatial_dims}: leave it out"
        )
    if image.shape[1:] != label.shape[1:]:
        return (
            f"the image has shape {tuple(image.shape[1:])}, the label {tuple(label.shape[1:])}: "
            "resample the label to the grid of its image"
        )
    distance = _misplacement(image, label)
    if not distance < _MAX_MISPLACEMENT:
        return (
            f"the label lies {round(distance, 1)} voxels away from its image (their affines "
            "differ): resample the label to the grid of its image"
        )
    unknown = sorted({float(value) for value in label.unique()} - set(range(num_classes)))
    if unknown:
        return (
            f"the label holds {_some(map(str, unknown))}, and the classes are 0 to "
            f"{num_classes - 1}: renumber the label"
        )
    if not torch.isfinite(image).all():
        return "the image holds voxels that are not finite: repair or leave it out"
    return None


def _misplacement(image: MetaTensor, label: MetaTensor) -> float:
    """The largest shift of a corner along an axis, in voxels; 0 unless both files are NIfTI.

    Only NIfTI says where an image lies.
    """
    files = [os.path.basename(str(item.meta.get("filename_or_obj"))) for item in (image, label)]
    if not all(".nii" in file.lower() for file in files):
        return 0.0
    voxel = np.linalg.norm(image.affine.numpy()[:3, :3], axis=0)
    return float(abs(_corners(image) - _corners(label)).max()) / float(min(voxel))


def _corners(image: MetaTensor) -> np.ndarray:
    """The 8 corners of an image in mm, (3, 8); missing axes have one voxel."""
    affine = image.affine.numpy()
    edges = [[0, size - 1] for size in [*image.shape[1:], 1, 1][:3]]
    return affine[:3, :3].dot(np.array(np.meshgrid(*edges)).reshape(3, -1)) + affine[:3, 3:]


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


def _some(names: Any) -> str:
    """The first of some names."""
    return ", ".join(list(names)[:_NAMED])
