# Written by monai_xtiny 0.2.0, which need not be installed.
"""A wider trained bundle as the teacher of a training: arXiv:1503.02531."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from .cases import Case
from .checks import check_held_out
from .files import PathLike
from .folds import fold_file, is_initialization, read_matching

# Keys of train.json in which teacher and student must agree: what an image goes through before
# the network, and what the network's channels mean.
_SAME = (
    "in_channels", "num_classes", "reading_transforms", "resampled_keys",
    "preprocessing_transforms", "spacing", "nnunet_plans", "nnunet_configuration", "network_axes",
)  # fmt: skip
# Of the network's definition: what a width changes, and the widest that is built.
_WIDTHS, _WIDEST = "filters", 4096
# Share of the teacher in the loss, and what logits are divided by (docs/benchmarks/recipes.md).
WEIGHT, TEMPERATURE = 0.5, 2.0


def read_teacher(
    teacher: str,
    bundle_root: PathLike,
    *,
    fold: int,
    held_out: Sequence[Case],
    data_root: PathLike,
) -> nn.Module:
    """Network of a trained bundle that differs from another in its widths alone, to be run only.

    Both are compared by their files, not by options of the command line. Nothing of the teacher is
    run but its weights, as numbers.

    Args:
        teacher: folder of the bundle.
        bundle_root: folder of the one that is trained.
        fold: of the training; the teacher's weights are those of the same fold.
        held_out: cases to validate on, which the teacher must not have seen.
        data_root: what the paths of the teacher's split are relative to.

    Raises:
        FileNotFoundError: the teacher lacks its config, weights or split.
        ValueError: it differs in more, was not trained, or was trained on cases held out.
    """
    if os.path.realpath(teacher) == os.path.realpath(bundle_root):
        raise ValueError(f"--teacher {teacher} is the bundle that is trained: give another one")
    own = _train_config(bundle_root, "export the bundle again")
    other = _train_config(teacher, "give --teacher FOLDER of a trained bundle")
    differing = [name for name in _SAME if own.get(name) != other.get(name)]
    widths = other["network_def"].get(_WIDTHS)
    definition = {**own["network_def"], _WIDTHS: widths}
    if other["network_def"] != definition or not _suit(widths, own["network_def"].get(_WIDTHS)):
        differing.append("network_def")
    if differing:
        raise ValueError(
            f"the teacher {teacher} has other {', '.join(differing)} than this bundle: export one "
            "of another width from this bundle's docs/search.json, and train it"
        )
    split_file = _file_of(teacher, "configs", "datalist.json", fold=fold)
    check_held_out(held_out, [split_file], data_root)
    return _load(_file_of(teacher, "models", "model.pt", fold=fold), definition)


def teach(trainer: SupervisedTrainer, teacher: nn.Module, device: torch.device) -> None:
    """Let a training follow the probabilities of another network, besides the labels.

    Args:
        trainer: whose inferer and loss are changed.
        teacher: of the same images and classes.
        device: of the training.
    """
    loss = TeachersLoss(trainer.loss_function)
    trainer.inferer = _TeachersInferer(trainer.inferer, teacher.to(device), loss)
    trainer.loss_function = loss


def teacher_digest(teacher: str | None, fold: int) -> str | None:
    """SHA-256 of the teacher's weights; ``None`` if there is no teacher.

    Raises:
        FileNotFoundError: it has no weights.
    """
    if teacher is None:
        return None
    digest = hashlib.sha256()
    with open(_file_of(teacher, "models", "model.pt", fold=fold), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class TeachersLoss(nn.Module):
    """``(1 - w) * loss(p, y) + w * T^2 * KL(softmax(t / T) || softmax(p / T))``, mean over voxels.

    Args:
        loss: of logits ``p`` and labels ``y``.

    Attributes:
        logits: of the teacher, ``t``, of the images that come next.
    """

    logits: torch.Tensor

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Loss of logits (B, K, *spatial) and labels (B, 1, *spatial).

        Raises:
            ValueError: the logits are of another shape than the teacher's.
        """
        if pred.shape != self.logits.shape:
            raise ValueError(
                f"the network gives {tuple(pred.shape)}, the teacher {tuple(self.logits.shape)}: "
                "leave --teacher or the deep supervision out"
            )
        own, teachers = (log_softmax(item / TEMPERATURE, dim=1) for item in (pred, self.logits))
        gap = kl_div(own, teachers, reduction="none", log_target=True).sum(dim=1).mean()
        return (1 - WEIGHT) * self.loss(pred, label) + WEIGHT * TEMPERATURE**2 * gap


class _TeachersInferer(Inferer):
    """What another inferer infers, and the teacher's logits of the same images for the loss."""

    def __init__(self, inferer: Inferer, teacher: nn.Module, loss: TeachersLoss) -> None:
        super().__init__()
        self.inferer, self.teacher, self.loss = inferer, teacher, loss

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Logits (B, K, *spatial) of images (B, C, *spatial)."""
        with torch.no_grad():
            self.loss.logits = self.teacher(inputs)
        return self.inferer(inputs, network, *args, **kwargs)


def _load(file: str, definition: Mapping[str, Any]) -> nn.Module:
    """The network of a definition with the weights of a file, neither larger than the file."""
    try:
        # Of no size until the weights are there, and drawing no random numbers.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = ConfigParser({"network_def": dict(definition)}).get_parsed_content(
                "network_def"
            )
    except Exception as error:
        raise ValueError(
            f"the network_def of {file} cannot be built: export teacher and bundle again"
        ) from error
    if sum(value.nbytes for value in network.parameters()) > os.path.getsize(file):
        raise ValueError(f"{file} is smaller than the weights of its network_def: train it again")
    state = read_matching(file, network)
    if is_initialization(state):
        raise ValueError(f"the teacher's weights {file} were not trained: train it first")
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _file_of(teacher: str, *names: str, fold: int) -> str:
    """A file that the teacher's training of a fold wrote."""
    file = fold_file(os.path.join(teacher, *names), fold)
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"there is no file {file}: give --teacher FOLDER of a bundle that was trained on this "
            "fold"
        )
    return file


def _train_config(root: PathLike, advice: str) -> Mapping[str, Any]:
    """The training of a bundle, as it is written."""
    file = Path(root, "configs", "train.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content["network_def"], dict):
            raise TypeError
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {file}: {advice}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file} is no config of a training: {advice}") from None
    return content


def _suit(widths: Any, own: Any) -> bool:
    """Whether a value lists numbers of channels, as many as another list does."""
    lists = isinstance(widths, list) and isinstance(own, list) and len(widths) == len(own)
    return lists and all(type(item) is int and 0 < item <= _WIDEST for item in widths)
