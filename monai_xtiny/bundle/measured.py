"""An evaluation into its bundle, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from monai_xtiny.bundle.card import MEASURED_PARTS, model_card, renewed_card
from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.figures import Plane, plot_overlay
from monai_xtiny.bundle.folder import CARD, EVALUATION, OVERLAY, Bundle
from monai_xtiny.bundle.results import Evaluation, evaluation_from_dict
from monai_xtiny.system.files import read_json, write_json, write_text

# Left by training, in the bundle's folder of results.
_TRAINING_STATE = "eval/checkpoints/training_state.pt"


@exclusive
def write_evaluation(bundle: Bundle, evaluation: Evaluation, planes: Sequence[Plane]) -> Path:
    """Write an evaluation into its bundle: ``docs/evaluation.json``, ``overlay.png``, the card.

    Of the card only the parts about the weights and the performance change.

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
    num_epochs = _num_epochs(bundle)
    card = model_card(
        bundle.selection,
        name=bundle.name,
        label_names=bundle.label_names,
        evaluation=evaluation,
        num_epochs=num_epochs,
    )
    path = bundle.path(CARD)
    text = renewed_card(path.read_text(encoding="utf-8"), card, MEASURED_PARTS)
    plot_overlay(planes, evaluation.case_dice, bundle.path(OVERLAY))
    write_json(bundle.path(EVALUATION), {**asdict(evaluation), "num_epochs": num_epochs})
    return write_text(path, text)


def read_evaluation(bundle: Bundle) -> Evaluation:
    """What :func:`write_evaluation` wrote.

    Raises:
        FileNotFoundError: the bundle was never evaluated.
    """
    return evaluation_from_dict(read_json(bundle.path(EVALUATION)))


def _num_epochs(bundle: Bundle) -> int | None:
    """Epochs of the last training, from its state or from an earlier evaluation."""
    state = bundle.path(_TRAINING_STATE)
    if state.is_file():
        trainer = torch.load(state, map_location="cpu", weights_only=True)["trainer"]
        return int(trainer["iteration"] // trainer["epoch_length"])
    former = bundle.path(EVALUATION)
    return read_json(former).get("num_epochs") if former.is_file() else None
