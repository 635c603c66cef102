"""The model card of a trained bundle: measured numbers, and pictures to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from monai_xtiny.evaluation import Evaluation
from monai_xtiny.export import data_kind, read_json, read_search, templates_dir, write_text
from monai_xtiny.report import Plane, model_card, plot_overlay

EVALUATION_FILE = "evaluation.json"


def write_evaluation(
    bundle_dir: str | os.PathLike[str], evaluation: Evaluation, planes: Sequence[Plane]
) -> Path:
    """Write an evaluation into a bundle: ``docs/evaluation.json``, ``overlay.png``, the card.

    Args:
        bundle_dir: the bundle, as the exporter wrote it.
        evaluation: of its weights.
        planes: one slice of every case.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: its search.json is of another version, or no case has a label.
    """
    bundle = Path(bundle_dir)
    docs = bundle / "docs"
    selection = read_search(docs / "search.json")
    plot_overlay(planes, evaluation.case_dice, docs / "overlay.png")
    write_text(docs / EVALUATION_FILE, json.dumps(asdict(evaluation), indent=1) + "\n")
    card = model_card(
        selection,
        name=bundle.resolve().name,
        label_names=label_names(bundle),
        kind=data_kind(selection.table.plan),
        templates=templates_dir(),
        evaluation=evaluation,
        num_epochs=_num_epochs(bundle),
    )
    return write_text(docs / "README.md", card)


def read_evaluation(bundle_dir: str | os.PathLike[str]) -> Evaluation:
    """What :func:`write_evaluation` wrote.

    Raises:
        FileNotFoundError: the bundle was never evaluated.
    """
    content = read_json(Path(bundle_dir) / "docs" / EVALUATION_FILE)
    return Evaluation(
        tuple(content["cases"]),
        tuple(tuple(row) for row in content["dice"]),
        tuple(tuple(row) for row in content["hd95"]),
    )


def label_names(bundle_dir: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of a bundle's classes, background first."""
    metadata = read_json(Path(bundle_dir) / "configs" / "metadata.json")
    definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return tuple(definition[str(index)] for index in range(len(definition)))


def _num_epochs(bundle: Path) -> int | None:
    """Epochs of the last training, if it left its state in the usual place."""
    state = bundle / "eval" / "checkpoints" / "training_state.pt"
    if not state.is_file():
        return None
    trainer = torch.load(state, map_location="cpu", weights_only=True)["trainer"]
    return int(trainer["iteration"] // trainer["epoch_length"])
