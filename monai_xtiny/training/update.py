"""A verified choice into its bundle: what depends on the width changes, and nothing else."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import re
import shutil
import tempfile
from itertools import count
from pathlib import Path

import torch

from monai_xtiny.bundle.card import with_measurements
from monai_xtiny.bundle.folder import (
    EVALUATION_FILE,
    SPLIT_FILE,
    VERIFICATION_FILE,
    find_bundle,
    label_names,
    read_search,
)
from monai_xtiny.bundle.large_files import LARGE_FILES, read_large_files, write_large_files
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.system.files import read_json, write_text
from monai_xtiny.training.compare import Verification
from monai_xtiny.training.verify import write_verification

_CARD, _SEARCH, _METADATA = "docs/README.md", "docs/search.json", "configs/metadata.json"
_PARTS = ("LICENSE", "configs", "docs", "models")
# What was made with the former weights, besides other files in models/.
_RESULTS = (
    f"configs/{SPLIT_FILE}", f"docs/{EVALUATION_FILE}", "docs/overlay.png", "docs/deploy.json",
    "models/model.onnx", "models/model_int8.onnx",
)  # fmt: skip
_CHOSEN = re.compile(r"^The width was chosen from unlabeled images .*$", re.MULTILINE)
_MOVED_TEXT = (
    "Brief trainings on labelled cases then moved the choice from width {} to width {}: "
    "`verification.json` has them."
)
_MOVED = re.compile(r"\n\nBrief trainings on labelled cases then moved .*$", re.MULTILINE)
# What the rule thought of the width, and of what to do about it, is settled.
_CONFIDENCE = re.compile(r"^(Confidence: |Of the rule's votes, ).*$", re.MULTILINE)
_IMAGES_ALONE = ("The choice of width rests on images alone; only training", "Only training")


def update_bundle(bundle_dir: str | os.PathLike[str], verification: Verification) -> Path | None:
    """Write a verification into its bundle, and move the choice to the recommended width.

    The network is at its initialisation then. Both widths are exported side by side, and what
    differs between them is carried over, so that edited configs, metadata, card and licences stay
    as their owner wrote them, as does everything else in the folder. All is prepared before the
    first file is replaced.

    A bundle that was trained is first copied, with weights and results, to ``former_widthN`` in its
    own folder, which ``package`` leaves out.

    Args:
        bundle_dir: the bundle.
        verification: of its choice.

    Returns:
        The copy of the trained bundle; ``None`` if it was not trained, or the choice stays.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: the verification is of another width than the bundle's, or recommends one that
            is not in the ladder.
    """
    bundle = find_bundle(bundle_dir)
    former = read_search(bundle / _SEARCH)
    width = verification.recommended
    if former.max_features != verification.selected or width not in former.table.widths:
        raise ValueError(
            f"the verification of width {verification.selected} recommends {width}, and the bundle "
            f"has width {former.max_features} of {former.table.widths}: verify this bundle"
        )
    if width == former.max_features:
        write_verification(bundle, verification)
        return None
    # The rule's confidence in the width that is used now.
    confidence = None if former.confidence is None else former.votes.get(width, 0.0)
    moved = dataclasses.replace(former, max_features=width, confidence=confidence)
    listed = read_large_files(bundle)
    with tempfile.TemporaryDirectory(prefix=".update.", dir=bundle) as name:
        old, new = (
            export_bundle(
                selection,
                Path(name, part, bundle.name),
                label_names=label_names(bundle),
                torchscript=(bundle / "models" / "model.ts").is_file(),
            )
            for part, selection in (("old", former), ("new", moved))
        )
        changed = _merge(bundle, old, new)
        write_verification(new, verification)
        copy = _copy_trained(bundle, old, Path(name, "copy"), former.max_features)
        for file in (f"docs/{VERIFICATION_FILE}", *changed):
            os.replace(new / file, bundle / file)
    if copy is not None:
        made = [
            path
            for path in (bundle / "models").iterdir()
            if path.is_file() and f"models/{path.name}" not in changed
        ]
        for path in (*made, *(bundle / file for file in _RESULTS)):
            path.unlink(missing_ok=True)
        if (bundle / "eval").exists():
            (bundle / "eval").rename(copy / "eval")
    if listed and all(entry["path"] in changed for entry in listed):
        (bundle / LARGE_FILES).unlink()
    write_large_files(bundle)
    return copy


def _merge(bundle: Path, old: Path, new: Path) -> list[str]:
    """Bring what the owner wrote into ``new``, and name its files that differ from ``old``."""
    files = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
    changed = [
        file
        for file in files
        if file != LARGE_FILES and not filecmp.cmp(old / file, new / file, shallow=False)
    ]
    for file in changed:
        if (bundle / file).is_file() and file == _CARD:
            write_text(new / file, _merged_card(bundle / file, old / file, new / file))
        elif (bundle / file).is_file() and file.startswith("configs/"):
            own, before, after = (read_json(root / file) for root in (bundle, old, new))
            for key in after:
                # Of a config the new network; of metadata only what nobody wrote by hand.
                is_free = file != _METADATA or own.get(key) == before.get(key)
                if after[key] != before.get(key) and is_free:
                    own[key] = after[key]
            if "eval_metrics" in own:
                own["eval_metrics"] = {}
            write_text(new / file, json.dumps(own, indent=4, ensure_ascii=False) + "\n")
    # The choice comes last: until then the bundle says that it has its former width.
    return sorted(changed, key=lambda file: (file == _SEARCH, file))


def _merged_card(own: Path, old: Path, new: Path) -> str:
    """The card as it is, with the lines that the width changes, nothing measured, and the move."""
    text, before, after = (path.read_text(encoding="utf-8") for path in (own, old, new))
    lines = dict(zip(before.split("\n"), after.split("\n"), strict=True))
    text = "\n".join(lines.get(line, line) for line in text.split("\n"))
    if "## Performance\n" in text:
        text = with_measurements(text, after, own)
    former, now = (read_search(path.parent / "search.json") for path in (old, new))
    moved = _MOVED_TEXT.format(former.max_features, now.max_features)
    share = f"{now.votes.get(now.max_features, 0.0):.0%}".replace("%", " %")
    text = _CONFIDENCE.sub(
        f"Of the rule's votes, {share} were for this width: labelled cases decided.", text
    )
    text = _CHOSEN.sub(lambda found: f"{found.group()}\n\n{moved}", _MOVED.sub("", text), count=1)
    return text.replace(*_IMAGES_ALONE)


def _copy_trained(bundle: Path, old: Path, folder: Path, max_features: int) -> Path | None:
    """Copy a trained bundle into a folder of its own; ``None`` if it was not trained."""
    weights = Path("models", "model.pt")
    has_results = any((bundle / file).exists() for file in _RESULTS)
    if not has_results and _hold_same(bundle / weights, old / weights):
        return None
    folder.mkdir()
    for part in _PARTS:
        if (bundle / part).is_dir():
            shutil.copytree(bundle / part, folder / part)
        elif (bundle / part).is_file():
            shutil.copy2(bundle / part, folder / part)
    name = f"former_width{max_features}"
    paths = (bundle / (name if number == 1 else f"{name}_{number}") for number in count(1))
    return folder.rename(next(path for path in paths if not path.exists()))


def _hold_same(first: Path, second: Path) -> bool:
    """Whether two files hold the same weights."""
    one, other = (
        torch.load(path, map_location="cpu", weights_only=True) for path in (first, second)
    )
    one = one.get("model", one)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)
