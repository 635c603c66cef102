"""The model card of a trained bundle: measured numbers, and pictures to look at."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from monai_xtiny.evaluation import (
    Evaluation,
    data_options,
    evaluate_bundle,
    evaluation_from_dict,
    find_bundle,
)
from monai_xtiny.export import data_kind, read_json, read_search, templates_dir, write_text
from monai_xtiny.labels import PlainPath
from monai_xtiny.report import Plane, model_card, plot_overlay

EVALUATION_FILE = "evaluation.json"
SPLIT_FILE = "datalist.json"
_PERFORMANCE = "## Performance\n"
_WEIGHTS = re.compile(r"^(?:\*\*)?`models/model\.pt` holds .*$", re.MULTILINE)


def evaluate_held_out(
    bundle_dir: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[Evaluation, list[Plane]]:
    """Evaluate a trained bundle on cases that it was not trained on.

    These are the validation section of ``configs/datalist.json``, which training writes, or of
    another datalist.

    Args:
        bundle_dir: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD datalist with a validation section.
        predict: what to evaluate in place of the bundle's network, as ``evaluate_bundle`` takes it;
            the results in the bundle's ``eval`` folder are left alone then.

    Returns:
        The evaluation, and one slice of every case.

    Raises:
        FileNotFoundError: there is no bundle, or no data.
        ValueError: the bundle was not trained, the datalist has no validation section, or one of
            its cases was trained on.
    """
    bundle = find_bundle(bundle_dir)
    read_search(bundle / "docs" / "search.json")
    options = data_options(data, datalist)
    split_file = bundle / "configs" / SPLIT_FILE
    split = read_json(split_file) if split_file.is_file() else None
    if datalist is None:
        if split is None:
            raise ValueError(
                f"{str(bundle)!r} has no configs/{SPLIT_FILE}, which training writes: train it "
                "first, or give --datalist FILE with a validation section"
            )
        options["datalist"] = PlainPath(os.fspath(split_file.absolute()))
    elif not read_json(datalist).get("validation"):
        raise ValueError(
            f"{os.fspath(datalist)!r} has no validation section: add one with the cases to evaluate"
        )
    planes: list[Plane] = []
    with tempfile.TemporaryDirectory() as folder:
        if predict is not None:
            options["output_dir"] = folder
        evaluation = evaluate_bundle(bundle, options, planes=planes, predict=predict)
    trained = {os.path.basename(case["label"]) for case in (split or {}).get("training", [])}
    both = [case for case in evaluation.cases if case in trained]
    if both:
        raise ValueError(
            f"the network was trained on {', '.join(both[:5])}: leave them out of the validation "
            f"section of {str(datalist or split_file)!r}"
        )
    return evaluation, planes


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


def read_evaluation(bundle_dir: str | os.PathLike[str]) -> Evaluation:
    """What :func:`write_evaluation` wrote.

    Raises:
        FileNotFoundError: the bundle was never evaluated.
    """
    return evaluation_from_dict(read_json(Path(bundle_dir) / "docs" / EVALUATION_FILE))


def label_names(bundle_dir: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of a bundle's classes, background first."""
    metadata = read_json(Path(bundle_dir) / "configs" / "metadata.json")
    definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return tuple(definition[str(index)] for index in range(len(definition)))


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
