"""A verified choice into its bundle: what depends on the width changes, and nothing else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from monai_xtiny.bundle.card import CHOICE_PARTS, MEASURED_PARTS, model_card, renewed_card
from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import (
    CARD,
    CURVE,
    DEPLOYMENT,
    EVALUATION,
    ONNX,
    ONNX_INT8,
    ONNX_STANDALONE,
    OVERLAY,
    PANELS,
    PARTS,
    REPORT,
    SEARCH,
    SPLIT,
    TORCHSCRIPT,
    VERIFICATION,
    WEIGHTS,
    Bundle,
)
from monai_xtiny.bundle.large_files import forget_large_files, write_large_files
from monai_xtiny.bundle.replace import replaced_whole
from monai_xtiny.bundle.report import report_page
from monai_xtiny.bundle.weights import hold_same
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.selection.choice import Selection
from monai_xtiny.selection.limits import renewed_budget
from monai_xtiny.selection.rule import Budget
from monai_xtiny.system.files import write_json, write_text
from monai_xtiny.training.compare import Verification, race_of

# What was made with the former weights, besides other files in models/.
_RESULTS = (
    SPLIT, EVALUATION, OVERLAY, PANELS, DEPLOYMENT, ONNX, ONNX_INT8, ONNX_STANDALONE,
)  # fmt: skip
# Files of the network itself, which another width makes anew.
_NETWORKS = (
    WEIGHTS, TORCHSCRIPT, ONNX, ONNX_INT8, ONNX_STANDALONE, "models/model_fold*",
)  # fmt: skip
_CONFIGS = ("train", "inference", "evaluate", "multi_gpu_train", "metadata")


@exclusive
def update_bundle(bundle: Bundle, verification: Verification) -> Path | None:
    """Write a verification into its bundle, and move the choice to the recommended width.

    The trainings become part of the choice: of search.json, card and curve. A network of another
    width is at its initialization then. Both choices are exported side by side, and what
    differs between them is carried over, so that edited configs, metadata, card and licenses stay
    as their owner wrote them, as does everything else in the folder. All is prepared in a copy of
    the folder, which then takes its place: a kill leaves the one or the other.

    Of a bundle that was trained, weights and results move to ``former_widthN`` in its own folder,
    which ``package`` leaves out.

    Args:
        bundle: the bundle, or its folder.
        verification: of its choice.

    Returns:
        The folder of what was trained; ``None`` if nothing was, or the choice stays.

    Raises:
        BlockingIOError: another process writes the bundle.
        FileNotFoundError: there is no bundle.
        ValueError: the verification is of another width than the bundle's, or recommends one that
            is not in the ladder, or outside of the budget; or the card has lost its marks.
    """
    former, width = bundle.selection, verification.recommended
    if former.max_features != verification.selected or width not in former.fitting_widths:
        raise ValueError(
            f"the verification of width {verification.selected} recommends {width}, and the bundle "
            f"has width {former.max_features} of {former.fitting_widths}: verify this bundle"
        )
    searched = former.race.searched if former.race else former.in_place_of
    race = race_of(verification, searched=searched or former.max_features)
    if width == former.max_features and race is None:
        write_verification(bundle, verification)
        return None
    votes = verification.probabilities or former.votes
    # Without probabilities, the rule's confidence in the width that is used now.
    is_stated = bool(verification.probabilities) or former.confidence is not None
    confidence = votes.get(width, 0.0) if is_stated else None
    moved = replace(
        former,
        max_features=width,
        votes=votes,
        confidence=confidence,
        race=race,
        budget=_raced_budget(former, verification),
        in_place_of=None,
    )
    with tempfile.TemporaryDirectory(prefix="monai_xtiny_") as name:
        old, new = (
            _export_width(bundle, selection, Path(name, part))
            for part, selection in (("old", former), ("new", moved))
        )
        with replaced_whole(bundle.root) as folder:
            shutil.copytree(
                bundle.root, folder, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True
            )
            copy = Bundle(folder, former, bundle.label_names)
            is_moved = width != former.max_features
            is_trained = is_moved and _is_trained(copy, old)
            kept = _keep_trained(copy, f"former_width{former.max_features}") if is_trained else None
            _carry_over(copy, old, new)
            write_verification(copy, verification)
            if is_moved:
                forget_large_files(copy, _NETWORKS)
            write_large_files(copy)
            write_text(copy.path(REPORT), report_page(Bundle.open(folder), name=bundle.name))
    return None if kept is None else bundle.root / kept


def _raced_budget(former: Selection, verification: Verification) -> Budget | None:
    """The budget of a choice, with what the recommended width is expected to lose."""
    if former.budget is None or not verification.probabilities:
        return former.budget
    return renewed_budget(former.budget, verification.probabilities, verification.recommended)


def write_verification(bundle: Bundle, verification: Verification) -> Path:
    """Write a verification into a bundle, ``docs/verification.json``.

    Args:
        bundle: the bundle.
        verification: of its choice, or of its former one.

    Returns:
        The file's path.
    """
    return write_json(bundle.path(VERIFICATION), asdict(verification))


def _export_width(bundle: Bundle, selection: Selection, folder: Path) -> Bundle:
    """What the exporter writes for a choice, under the bundle's name."""
    exported = export_bundle(
        selection,
        folder / bundle.name,
        label_names=bundle.label_names,
        torchscript=bundle.path(TORCHSCRIPT).is_file(),
        report=False,
    )
    return Bundle.open(exported)


def _carry_over(bundle: Bundle, old: Bundle, new: Bundle) -> None:
    """Change what differs between two exported widths, and nothing that the owner wrote."""
    for name in _CONFIGS:
        before, after = old.config(name), new.config(name)
        path = bundle.path(f"configs/{name}.json")
        if before != after and path.is_file():
            write_json(path, _merged(name, bundle.config(name), before, after))
    is_moved = new.selection.max_features != old.selection.max_features
    card = model_card(
        new.selection,
        name=new.name,
        label_names=new.label_names,
        former_width=old.selection.max_features if is_moved else None,
    )
    path = bundle.path(CARD)
    parts = (*CHOICE_PARTS, *MEASURED_PARTS) if is_moved else CHOICE_PARTS
    write_text(path, renewed_card(path.read_text(encoding="utf-8"), card, parts))
    for file in (SEARCH, CURVE, WEIGHTS, TORCHSCRIPT) if is_moved else (SEARCH, CURVE):
        if new.path(file).is_file():
            # Not into the file that the former folder still holds.
            bundle.path(file).unlink(missing_ok=True)
            shutil.copyfile(new.path(file), bundle.path(file))


def _merged(
    name: str, own: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """A config as it is, with what another width changes.

    Of metadata only what nobody has edited; what was evaluated is not true of the new network.
    """
    merged = dict(own)
    for key in after:
        is_free = name != "metadata" or own.get(key) == before.get(key)
        if after[key] != before.get(key) and is_free:
            merged[key] = after[key]
    if "eval_metrics" in merged:
        merged["eval_metrics"] = {}
    return merged


def _is_trained(bundle: Bundle, old: Bundle) -> bool:
    """Whether a bundle holds results of any fold, or other weights than its initialization."""
    results = [*(bundle.path(file) for file in _RESULTS), *_fold_splits(bundle)]
    results += [*bundle.path("models").glob("model_fold*"), *bundle.path("eval").glob("*")]
    has_results = any(path.exists() for path in results)
    return has_results or not hold_same(bundle.weights(), old.weights())


def _fold_splits(bundle: Bundle) -> list[Path]:
    """Data lists of other folds than the first."""
    return sorted(bundle.path("configs").glob("datalist_fold*.json"))


def _keep_trained(bundle: Bundle, name: str) -> str:
    """Copy the parts of a trained bundle to a folder in it, and take its results away.

    Returns:
        The folder's name: ``name``, or the first of ``name_2``, ``name_3``, ... that is free.
    """
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    folder = next(bundle.path(item) for item in names if not bundle.path(item).exists())
    folder.mkdir()
    for part in PARTS:
        if bundle.path(part).is_dir():
            # Real copies: what is edited in the bundle later shall not change here.
            shutil.copytree(bundle.path(part), folder / part, symlinks=True)
        elif bundle.path(part).is_file():
            shutil.copy2(bundle.path(part), folder / part, follow_symlinks=False)
    if bundle.path("eval").exists():
        bundle.path("eval").rename(folder / "eval")
    made = [path for path in bundle.path("models").iterdir() if path.is_file()]
    for path in (*made, *_fold_splits(bundle), *(bundle.path(file) for file in _RESULTS)):
        path.unlink(missing_ok=True)
    return folder.name


def _link_or_copy(source: str, target: str) -> str:
    """A second name for a file, or a copy where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
        return target
    except OSError:
        return shutil.copy2(source, target, follow_symlinks=False)
