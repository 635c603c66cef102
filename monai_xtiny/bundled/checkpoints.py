"""What a training saves: its best weights, and the state to resume from."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator, Trainer
from monai.handlers import CheckpointLoader
from monai.utils import set_determinism
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .files import PathLike, save_whole, written_whole
from .folds import are_equal, is_initialization, load_tensors, read_matching, shapes_of
from .splits import Split, read_names, write_split

# What the model card says of the weights' accuracy, between its marks.
_PERFORMANCE = re.compile(
    r"(<!-- xtiny:performance -->).*?(<!-- /xtiny:performance -->)", re.DOTALL
)
_NOT_MEASURED = (
    "Not measured since the network was trained anew: run `python -m monai_xtiny evaluate --bundle "
    "BUNDLE --data DATA`."
)
# What evaluation writes of weights, and the page that shows it.
_MEASURED = ("evaluation.json", "overlay.png", "panels.png", "report.html")
# What a training's state consists of.
_STATE = ("network", "optimizer", "lr_scheduler", "trainer", "best", "split")


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
        # Whether what was measured may be of the weights that this run writes over.
        self.is_gone_on = False

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
            current = read_matching(self.file, self.network)
        except (OSError, ValueError):
            current = {}
        best = former.get("best_weights")
        if "best_weights" not in former:  # of an earlier version, which wrote the split at once
            is_own = read_names(self.split_file or "") == former["split"]
        else:  # without a validation the last weights were written
            is_own = any(are_equal(current, item) for item in (best, former["network"]))
        if is_own:
            self.written, self.is_gone_on = current, True
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
        elif self.is_gone_on:
            _forget_measures(self.file, only=_MEASURED[0])
        self.is_gone_on = False
        save_whole(weights, self.file)
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
        teacher: digest of the teacher's weights, if it has one.
    """

    def __init__(
        self,
        file: str,
        split: Split,
        network: nn.Module,
        *,
        resume: bool,
        checkpoint: str | None = None,
        teacher: str | None = None,
    ) -> None:
        self.file, self.network, self.teacher = file, network, teacher
        self.checkpoint = None if checkpoint is None else os.path.abspath(checkpoint)
        self.label_names = split.label_names()
        self.former: dict[str, Any] = {}
        if resume and os.path.isfile(file):
            advice = "remove it, or pass --resume False, to start anew"
            self.former = load_tensors(file, advice)
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
        if shapes_of(self.former["network"]) != shapes_of(self.network.state_dict()):
            raise ValueError(
                f"the training in {self.file} is of another network: pass another --output_dir, "
                f"{anew}"
            )
        if self.checkpoint is not None and self.former.get("checkpoint") != self.checkpoint:
            raise ValueError(
                f"the training in {self.file} did not start from {self.checkpoint}: leave "
                f"--checkpoint out to go on, pass another --output_dir, {anew}"
            )
        if self.former.get("teacher") != self.teacher:
            what = "another teacher, or none" if self.teacher else "a teacher"
            raise ValueError(
                f"the training in {self.file} had {what}: give --teacher as before to go on, pass "
                f"another --output_dir, {anew}"
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
            _draw_anew(trainer, seed + self.former_epoch + idist.get_rank())
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
            "teacher": self.teacher,
        }
        if best_weights is not None:
            content["best_weights"] = best_weights.written
        save_whole(content, self.file)


def _draw_anew(trainer: Trainer, seed: int) -> None:
    """Seed all that draws, transforms of a loader without workers too: they were seeded with it."""
    set_determinism(seed=seed)
    dataset = getattr(trainer.data_loader, "dataset", None)
    if dataset is not None:
        set_rnd(dataset, seed)


def _holds_training(file: str, split_file: str | None, is_own: bool) -> bool:
    """Whether there are trained weights that are not just gone on with, as MONAI Label does."""
    if not os.path.isfile(file):
        return False
    if split_file is not None and os.path.isfile(split_file):
        return True
    try:
        is_trained = not is_initialization(load_tensors(file, ""))
    except (ValueError, AttributeError):
        return True  # somebody's, whatever it is
    return is_own and is_trained


@idist.one_rank_only()
def _keep_aside(file: str, split_file: str | None) -> None:
    """Move what another training wrote to a folder of its own, and say so.

    The weights are copied, as whoever goes on from them may not have read them yet.
    """
    root = Path(os.path.abspath(file)).parent.parent
    folders = (root / f"former_training_{number}" for number in count(1))
    former = next(folder for folder in folders if not folder.exists())
    names = (*_MEASURED, "README.md") if _is_in_bundle(root) else ()
    docs = [root / "docs" / name for name in names]
    for path in [Path(os.path.abspath(item)) for item in (file, split_file) if item] + docs:
        if path.is_file():
            inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            (former / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, former / inside)
    if split_file is not None:
        Path(split_file).unlink(missing_ok=True)
    _forget_measures(file)
    print(f"the weights of the former training are in {former}", flush=True)


def _is_in_bundle(root: Path) -> bool:
    """Whether a folder is a bundle: weights may be written anywhere, by ``--ckpt_dir``."""
    return (root / "configs" / "metadata.json").is_file()


@idist.one_rank_only()
def _forget_measures(file: str, *, only: str = "") -> None:
    """Take what was measured with the weights in a bundle's file out of the bundle.

    It tells of fold 0 alone.

    Args:
        file: of the weights.
        only: where the bundle's ``docs`` have this file.
    """
    root = Path(os.path.abspath(file)).parent.parent
    is_told = "_fold" not in os.path.basename(file) and (root / "docs" / only).exists()
    if _is_in_bundle(root) and is_told:
        _forget_performance(root / "docs")


def _forget_performance(docs: Path) -> None:
    """Take what the card says of former weights out of it; what was measured is kept aside."""
    for name in _MEASURED:
        (docs / name).unlink(missing_ok=True)
    card = docs / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        renewed = _PERFORMANCE.sub(rf"\1\n{_NOT_MEASURED}\n\2", text)
        if renewed != text:
            with written_whole(card) as part:
                part.write_text(renewed, encoding="utf-8")


def _is_measured(evaluator: Evaluator) -> bool:
    """Whether the key metric is defined for any class of any case."""
    state = evaluator.state
    details = getattr(state, "metric_details", {}).get(getattr(state, "key_metric_name", None))
    return not torch.is_tensor(details) or bool(torch.isfinite(details).any())
