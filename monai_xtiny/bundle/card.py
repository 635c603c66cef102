"""The model card: the bundle's README, and the parts of it that are measured."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from monai_xtiny.bundle.figures import Plane, plot_overlay
from monai_xtiny.bundle.folder import (
    EVALUATION_FILE,
    data_kind,
    label_names,
    read_search,
)
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.summary import advice
from monai_xtiny.bundle.templates import template_environment, templates_dir
from monai_xtiny.selection.rule import Selection
from monai_xtiny.selection.rules import find_rule
from monai_xtiny.system.files import read_json, write_text

if TYPE_CHECKING:
    from monai_xtiny.bundle.results import Evaluation


CARD_TEMPLATE = "README.md.jinja"


def model_card(
    selection: Selection,
    *,
    name: str,
    label_names: tuple[str, ...],
    kind: str,
    templates: str | os.PathLike[str],
    evaluation: Evaluation | None = None,
    num_epochs: int | None = None,
) -> str:
    """The bundle's README, with the headings that the MONAI Model Zoo asks for.

    Args:
        selection: the choice and the table it was made from.
        name: of the bundle.
        label_names: of the classes, background first.
        kind: ``volumes``, ``slices`` or ``images``.
        templates: folder that holds the card's template.
        evaluation: of the trained network, with ``overlay.png`` beside the card.
        num_epochs: that it was trained for, where known.
    """
    environment = template_environment(templates)
    environment.filters["md"] = _escape_markdown
    environment.filters["number"] = _format_number
    table = selection.table
    rule = find_rule(selection.method)
    return environment.get_template(CARD_TEMPLATE).render(
        name=name,
        label_names=label_names,
        kind=kind,
        selection=selection,
        rung=selection.rung,
        full=table.ladder[0],
        plan=table.plan,
        table=table,
        evaluation=evaluation,
        num_epochs=num_epochs,
        means={rung.max_features: float(np.mean(rung.sensitivity)) for rung in table.ladder},
        alignments={
            rung.max_features: float(np.mean(rung.alignment))
            for rung in table.ladder
            if rung.alignment
        },
        description=rule.describe(table),
        voters=rule.voters(table),
        advice=advice(selection),
    )


def _format_number(value: float, digits: int) -> str:
    """A number for a table, which says so where there is none."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "n/a"


def _escape_markdown(text: str) -> str:
    """Text with Markdown's and HTML's marks made harmless."""
    return "".join(f"\\{mark}" if mark in "\\`*[]<>|$" else mark for mark in str(text))


_PERFORMANCE = "## Performance\n"
_WEIGHTS = re.compile(r"^(?:\*\*)?`models/model\.pt` holds .*$", re.MULTILINE)


def write_evaluation(
    bundle_dir: str | os.PathLike[str], evaluation: Evaluation, planes: Sequence[Plane]
) -> Path:
    """Write an evaluation into a bundle: ``docs/evaluation.json``, ``overlay.png``, the card.

    Of the card only the section Performance and the line about the weights change, so that what
    its owner wrote stays.

    Args:
        bundle_dir: the bundle, as the exporter wrote it.
        evaluation: of its weights.
        planes: one slice of every case.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: no case has a label, or the card lost its heading Performance.
    """
    bundle = Path(bundle_dir)
    docs = bundle / "docs"
    selection = read_search(docs / "search.json")
    num_epochs = _num_epochs(bundle)
    content = {**asdict(evaluation), "num_epochs": num_epochs}
    write_text(docs / EVALUATION_FILE, json.dumps(content, indent=4) + "\n")
    card = model_card(
        selection,
        name=bundle.resolve().name,
        label_names=label_names(bundle),
        kind=data_kind(selection.table.plan),
        templates=templates_dir(),
        evaluation=evaluation,
        num_epochs=num_epochs,
    )
    path = docs / "README.md"
    text = with_measurements(path.read_text(encoding="utf-8"), card, path)
    plot_overlay(planes, evaluation.case_dice, docs / "overlay.png")
    return write_text(path, text)


def with_measurements(text: str, card: str, path: Path) -> str:
    """The card as it is, with the measured parts of a new one.

    Args:
        text: the card as it is.
        card: the new one.
        path: of the card, for the message.

    Raises:
        ValueError: the card lost its heading Performance.
    """
    if _PERFORMANCE not in text:
        raise ValueError(f"{str(path)!r} has no heading '## Performance': add it, or export again")
    before, after = text.split(_PERFORMANCE, 1)
    rest = after[after.index("\n## ") :] if "\n## " in after else ""
    measured = card.split(_PERFORMANCE, 1)[1].split("\n## ", 1)[0]
    found = _WEIGHTS.search(card)
    line = found.group() if found else ""
    return _WEIGHTS.sub(lambda _: line, before) + _PERFORMANCE + measured + rest


def _num_epochs(bundle: Path) -> int | None:
    """Epochs of the last training, from its state or from an earlier evaluation."""
    state = bundle / "eval" / "checkpoints" / "training_state.pt"
    if state.is_file():
        trainer = torch.load(state, map_location="cpu", weights_only=True)["trainer"]
        return int(trainer["iteration"] // trainer["epoch_length"])
    former = bundle / "docs" / EVALUATION_FILE
    return read_json(former).get("num_epochs") if former.is_file() else None
