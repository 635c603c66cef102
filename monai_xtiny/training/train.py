"""Train a width of the ladder by the emitted recipe, and measure it on cases held out."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.results import Evaluation, evaluation_from_dict
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.selection.choice import with_width
from monai_xtiny.training.evaluate import evaluate_bundle
from monai_xtiny.training.labeled import data_options

if TYPE_CHECKING:
    from monai_xtiny.selection.choice import Selection


@dataclass(frozen=True)
class Training:
    """One training, and what the network was worth on the cases held out.

    Args:
        max_features: width cap.
        fold: of the split by case.
        seed: of initialization and augmentation.
        epochs: trained.
        curve: (epoch, mean Dice over cases and foreground classes), as training measured it.
        evaluation: of ``model.pt``, the weights of the best validation.
        seconds: of training alone.
    """

    max_features: int
    fold: int
    seed: int
    epochs: int
    curve: tuple[tuple[int, float], ...]
    evaluation: Evaluation
    seconds: float


def train_width(
    selection: Selection,
    max_features: int,
    *,
    data: str | os.PathLike[str],
    bundle_dir: str | os.PathLike[str],
    epochs: int,
    val_interval: int = 5,
    fold: int = 0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Training:
    """Emit the bundle of one width, train it by its own ``train.json``, and evaluate it.

    Args:
        selection: any choice from the ladder; its width is replaced.
        max_features: width to train.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        bundle_dir: where the trained bundle shall be; one that is there is replaced.
        epochs: to train.
        val_interval: epochs between two validations.
        fold: of the split by case.
        seed: of initialization and augmentation.
        overrides: further keys of ``train.json``.
        progress: called with epoch and mean Dice after each validation.

    Returns:
        The measured training.

    Raises:
        ValueError: the width is not in the ladder.
    """
    chosen = with_width(selection, max_features)
    return train_bundle(
        Bundle.open(export_bundle(chosen, bundle_dir, overwrite=True)),
        data=data,
        epochs=epochs,
        val_interval=val_interval,
        fold=fold,
        seed=seed,
        overrides=overrides,
        progress=progress,
    )


def train_bundle(
    bundle: Bundle,
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    epochs: int,
    val_interval: int = 5,
    fold: int = 0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
    only_dice: bool = False,
) -> Training:
    """Train a bundle by its own ``train.json``, and evaluate it.

    Of another fold than 0 the bundle holds the weights in ``models/model_foldN.pt``.

    Args:
        bundle: which is trained in place.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD ``dataset.json``; one of the two is needed.
        epochs: to train.
        val_interval: epochs between two validations.
        fold: of the split by case.
        seed: of initialization and augmentation.
        overrides: further keys of ``train.json``.
        progress: called with epoch and mean Dice after each validation.
        only_dice: whether to measure the Dice alone, as :func:`evaluate_bundle` does.

    Returns:
        The measured training.

    Raises:
        FileNotFoundError: there are no data.
    """
    options = {
        **data_options(data, datalist),
        "epochs": epochs,
        "val_interval": min(val_interval, epochs),
        "fold": fold,
        "seed": seed,
        **(overrides or {}),
    }
    curve, seconds = run_training(bundle, options, progress)
    # Of the weights that were trained, not of those that the training began with.
    options.pop("checkpoint", None)
    evaluation = evaluate_bundle(bundle, options, only_dice=only_dice)
    return Training(
        bundle.selection.max_features,
        fold,
        seed,
        epochs,
        tuple(curve),
        evaluation,
        round(seconds, 1),
    )


def run_training(
    bundle: Bundle,
    options: Mapping[str, Any],
    progress: Callable[[int, float], None] | None = None,
) -> tuple[list[tuple[int, float]], float]:
    """Run a bundle's ``train.json``.

    Args:
        bundle: which is trained in place.
        options: keys of ``train.json``.
        progress: called with epoch and mean Dice after each validation.

    Returns:
        What progress was called with, and the seconds that the training took.
    """
    train = bundle.workflow(("train",), options)
    evaluator = train.parser.get_parsed_content("validate#evaluator")
    trainer = train.parser.get_parsed_content("train#trainer")
    curve: list[tuple[int, float]] = []

    def record(_engine: Engine) -> None:
        curve.append((trainer.state.epoch, evaluator.state.metrics["val_mean_dice"]))
        if progress is not None:
            progress(*curve[-1])

    evaluator.add_event_handler(Events.EPOCH_COMPLETED, record)
    start = time.perf_counter()
    train.run()
    seconds = time.perf_counter() - start
    train.finalize()
    return curve, seconds


def training_from_dict(content: Mapping[str, Any]) -> Training:
    """The training of one line of a journal."""
    fields = {field.name: content[field.name] for field in dataclasses.fields(Training)}
    evaluation = evaluation_from_dict(fields["evaluation"])
    curve = tuple((epoch, dice) for epoch, dice in fields["curve"])
    return Training(**{**fields, "curve": curve, "evaluation": evaluation})
