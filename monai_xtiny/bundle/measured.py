"""An evaluation into its bundle, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from monai_xtiny.bundle.card import MEASURED_PARTS, model_card, renewed_card
from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.figures import Plane, plot_overlay
from monai_xtiny.bundle.folder import (
    CARD,
    EVALUATION,
    METADATA,
    OVERLAY,
    PANELS,
    WEIGHTS,
    Bundle,
)
from monai_xtiny.bundle.records import LearningCurve, curve_rows, read_learning_curve
from monai_xtiny.bundle.results import Evaluation, evaluation_from_dict
from monai_xtiny.bundle.sheets import write_panels
from monai_xtiny.bundle.weights import read_weights
from monai_xtiny.bundled.folds import are_equal, shapes_of
from monai_xtiny.system.files import read_json, write_json, write_text

# Left by training, in the bundle's folder of results.
_TRAINING_STATE = "eval/checkpoints/training_state.pt"
# What earlier versions wrote into metadata.json, and what is true of trained weights too.
_UNTRAINED = "selected from unlabeled images, not trained yet"
_TRAINED = "the width was selected from unlabeled images"


@exclusive
def write_evaluation(bundle: Bundle, evaluation: Evaluation, planes: Sequence[Plane]) -> Path:
    """Write an evaluation into its bundle: ``docs/evaluation.json``, its images, the card.

    ``evaluation.json`` keeps the learning curve too, since results of training do not travel.

    Of the card only the parts about the weights and the performance change. Metadata of earlier
    versions, which called the network untrained, no longer do.

    Args:
        bundle: whose weights were evaluated.
        evaluation: of its weights.
        planes: one slice of every case.

    Returns:
        The card's path.

    Raises:
        BlockingIOError: another process writes the bundle.
        ValueError: no case has a label, or the card lost its marks.
    """
    num_epochs = trained_epochs(bundle)
    card = model_card(
        bundle.selection,
        name=bundle.name,
        label_names=bundle.label_names,
        evaluation=evaluation,
        num_epochs=num_epochs,
    )
    path = bundle.path(CARD)
    text = renewed_card(path.read_text(encoding="utf-8"), card, MEASURED_PARTS)
    curve = curve_rows(own_learning_curve(bundle))
    plot_overlay(planes, evaluation.case_dice, bundle.path(OVERLAY))
    write_panels(planes, evaluation.case_dice, bundle.path(PANELS))
    content = {**asdict(evaluation), "num_epochs": num_epochs, "learning_curve": curve}
    summary = evaluation.summary(bundle.label_names[1:])
    write_json(bundle.path(EVALUATION), {**content, "summary": summary})
    _renew_changelog(bundle)
    return write_text(path, text)


def read_evaluation(bundle: Bundle) -> Evaluation:
    """What :func:`write_evaluation` wrote.

    Raises:
        FileNotFoundError: the bundle was never evaluated.
    """
    return evaluation_from_dict(read_json(bundle.path(EVALUATION)))


def _renew_changelog(bundle: Bundle) -> None:
    """Take out of the metadata of earlier versions what is no longer true."""
    metadata = bundle.config("metadata")
    changelog = metadata.get("changelog")
    if isinstance(changelog, dict) and _UNTRAINED in changelog.values():
        renewed = {
            version: _TRAINED if text == _UNTRAINED else text for version, text in changelog.items()
        }
        write_json(bundle.path(METADATA), {**metadata, "changelog": renewed})


def trained_epochs(bundle: Bundle) -> int | None:
    """Epochs of the training of the weights, from its state or from an earlier evaluation.

    Raises:
        ValueError: what should hold them is damaged.
    """
    state = _training_state(bundle)
    if state is not None and state.is_of_weights:
        return state.done
    former = bundle.path(EVALUATION)
    num_epochs = read_json(former).get("num_epochs") if former.is_file() else None
    if num_epochs is not None and type(num_epochs) is not int:
        raise ValueError(f"num_epochs in {str(former)!r} is no whole number: remove the file")
    return num_epochs


def is_stopped(bundle: Bundle) -> bool:
    """Whether the last training was stopped before its last epoch.

    Raises:
        ValueError: its state is damaged.
    """
    state = _training_state(bundle)
    return state is not None and state.done < state.wanted


def own_learning_curve(bundle: Bundle) -> LearningCurve | None:
    """The curve of the training of the weights; ``None`` where nothing tells.

    Raises:
        ValueError: its table or its state is damaged.
    """
    state = _training_state(bundle)
    return read_learning_curve(bundle, has_table=state is None or state.is_of_weights)


@dataclass(frozen=True)
class _State:
    """The last training of fold 0 in the bundle's own folder of results.

    Args:
        done: epochs that are over.
        wanted: epochs that it was to have.
        is_of_weights: whether it wrote the bundle's weights. One that wrote elsewhere, or was
            stopped before its first validation, did not.
    """

    done: int
    wanted: int
    is_of_weights: bool


def _training_state(bundle: Bundle) -> _State | None:
    """What the last training left; ``None`` without its state."""
    state = bundle.path(_TRAINING_STATE)
    if not state.is_file():
        return None
    try:
        content = torch.load(state, map_location="cpu", weights_only=True, mmap=True)
        trainer = content["trainer"]
        done = int(trainer["iteration"] // trainer["epoch_length"])
        wanted = int(trainer.get("max_epochs") or done)
        # Without a validation the last weights are those that count; earlier versions do not tell.
        if "best_weights" not in content:
            return _State(done, wanted, True)
        written = [dict(content[name] or {}) for name in ("best_weights", "network")]
    except Exception as error:  # PyTorch's own words advise to load it as code
        raise ValueError(
            f"{str(state)!r} is no state of a training ({type(error).__name__}): remove it"
        ) from error
    file = bundle.path(WEIGHTS)
    weights = read_weights(file) if file.is_file() else {}
    is_of_weights = any(
        shapes_of(weights) == shapes_of(item) and are_equal(weights, item) for item in written
    )
    return _State(done, wanted, is_of_weights)
