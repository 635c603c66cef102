"""Brief trainings of a bundle's width and of its neighbours in the ladder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import get_seed, set_determinism

from monai_xtiny.bundle.folder import VERIFICATION_FILE, data_options, find_bundle, read_search
from monai_xtiny.bundle.writer import export_bundle
from monai_xtiny.selection.choice import Selection
from monai_xtiny.system.config_text import check_config_text
from monai_xtiny.system.files import read_json, write_text
from monai_xtiny.training.check import check_bundle
from monai_xtiny.training.compare import MIN_HELD_OUT, Verification, compare_trainings
from monai_xtiny.training.train import (
    Training,
    read_journal,
    train_bundle,
    training_from_dict,
    training_to_line,
)

JOURNAL_FILE = "trainings.jsonl"
# A brief training is 10 epochs of 40 updates, whatever the number of cases.
NUM_EPOCHS = 10
EPOCH_LENGTH = 40
MAX_HELD_OUT = 100
MIN_SEEDS = 2
# Workers start anew with each pass over the cases: not for passes of fewer batches.
_MIN_BATCHES = 10


@dataclass(frozen=True)
class _Brief:
    """How long to train, with which keys of ``train.json``, and the files that it reads."""

    epochs: int
    num_updates: int
    options: Mapping[str, Any]
    files: tuple[tuple[str, int, int], ...]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the global generators as they were: trainings seed all of them."""
    former, states = get_seed(), (random.getstate(), np.random.get_state())
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            set_determinism(former)
            random.setstate(states[0])
            np.random.set_state(states[1])


@_random_state_kept()
def verify_bundle(
    bundle_dir: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    num_seeds: int = MIN_SEEDS,
    fold: int = 0,
    seed: int = 0,
    work_dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[Training], None] | None = None,
) -> Verification:
    """Train the width of a bundle and its neighbours in the ladder, briefly and alike.

    Every training is the bundle's own ``train.json`` with the ``network_def`` of its width, in a
    temporary bundle. Its last weights are measured on the cases that the split holds out, at most
    100 of them; these have no part in the training. The bundle itself stays as it is.

    Narrow networks learn more slowly, so brief trainings favour the wider: that a choice is on the
    plateau can be relied on, that it is too narrow should hold with more epochs too.

    Args:
        bundle_dir: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD ``dataset.json``; one of the two is needed.
        epochs: over all cases; without, 400 updates in 10 epochs, whatever the number of cases.
        num_seeds: trainings of each width, at least 2.
        fold: of the split by case.
        seed: of the first training; the others count on from it.
        work_dir: folder that keeps a journal of finished trainings, which the same verification,
            or one with more seeds, does not repeat; a temporary one without.
        overrides: further keys of ``train.json``.
        progress: called with each training, those of the journal too.

    Returns:
        The verification.

    Raises:
        FileNotFoundError: there is no bundle, or no data.
        ValueError: the data do not fit the bundle, fewer than 2 cases are held out, or fewer than
            2 seeds or 1 epoch are asked for.
    """
    bundle = find_bundle(bundle_dir)
    selection = read_search(bundle / "docs" / "search.json")
    if num_seeds < MIN_SEEDS:
        raise ValueError(
            f"num_seeds is {num_seeds}: give at least {MIN_SEEDS}, since one training does not "
            "show how much trainings differ"
        )
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}: give at least 1")
    if work_dir is not None:
        check_config_text(os.path.realpath(work_dir), "work folder")
    checked = check_bundle(bundle, data=data, datalist=datalist)
    if checked.problems:
        raise ValueError(
            f"{len(checked.problems)} problems with {checked.num_cases} labelled cases, which "
            f"check lists: {checked.problems[0]}"
        )
    keys = {"fold": fold, **(overrides or {})}
    brief = _brief_training(bundle, {**data_options(data, datalist), **keys}, epochs)
    recipe = [read_json(bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")]
    recipe[0].pop("network_def", None)
    versions = [torch.__version__, monai.__version__]
    digest = _digest(recipe, asdict(selection.table.plan), keys, asdict(brief), versions)
    trainings = []
    with _work_folder(work_dir) as folder:
        journal = folder / JOURNAL_FILE
        lines = read_journal(journal)
        done = {
            (line["max_features"], line["seed"]): training_from_dict(line)
            for line in lines
            if line.get("digest") == digest
        }
        for number in range(seed, seed + num_seeds):
            for width in neighbourhood(selection):
                if (width, number) not in done:
                    copy = folder / f"width{width}_seed{number}_segmentation"
                    training = train_bundle(
                        _write_width(bundle, selection, width, copy),
                        width,
                        data=data,
                        datalist=datalist,
                        epochs=brief.epochs,
                        fold=fold,
                        seed=number,
                        overrides={**brief.options, **(overrides or {})},
                    )
                    rmtree(copy)
                    done[width, number] = training
                    lines.append(json.loads(training_to_line(training, digest=digest)))
                    write_text(journal, "".join(json.dumps(line) + "\n" for line in lines))
                trainings.append(done[width, number])
                if progress is not None:
                    progress(trainings[-1])
    return compare_trainings(selection.max_features, trainings, num_updates=brief.num_updates)


def write_verification(bundle_dir: str | os.PathLike[str], verification: Verification) -> Path:
    """Write a verification into a bundle, ``docs/verification.json``.

    Args:
        bundle_dir: the bundle.
        verification: of its choice, or of its former one.

    Returns:
        The file's path.
    """
    content = json.dumps(asdict(verification), indent=4, allow_nan=False)
    return write_text(Path(bundle_dir) / "docs" / VERIFICATION_FILE, content + "\n")


def neighbourhood(selection: Selection) -> tuple[int, ...]:
    """The next wider width of the ladder, the selected, the next narrower; those that exist."""
    widths = selection.table.widths
    place = widths.index(selection.max_features)
    return widths[max(place - 1, 0) : place + 2]


def _brief_training(bundle: Path, options: Mapping[str, Any], epochs: int | None) -> _Brief:
    """What the bundle's ``train.json`` makes of the data, and how long to train on them."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), **options})
    training, held_out = (parser.get_parsed_content(f"{part}_cases") for part in ("train", "val"))
    if len(held_out) < MIN_HELD_OUT:
        raise ValueError(
            f"fold {options['fold']} holds out {len(held_out)} of "
            f"{len(training) + len(held_out)} labelled cases, and an interval needs "
            f"{MIN_HELD_OUT}: label more cases, or give another --fold or a --datalist with a "
            "validation section"
        )
    batch_size = parser.get_parsed_content("batch_size")
    num_batches = math.ceil(len(training) / batch_size)
    brief: dict[str, Any] = {
        # No validation during training: the held-out cases are for the verdict alone.
        "val_interval": (epochs or NUM_EPOCHS) + 1,
        "validate#dataset#data": f"$@val_cases[:{MAX_HELD_OUT}]",
        "tensorboard": False,
    }
    if epochs is None:
        brief["train#trainer#epoch_length"] = EPOCH_LENGTH
        rate = parser.get_parsed_content("cache_rate")
        needed = NUM_EPOCHS * EPOCH_LENGTH * batch_size
        brief["cache_rate"] = min(rate, needed / max(len(training), 1))
        if num_batches < _MIN_BATCHES:
            brief["num_workers"] = 0
    files = [file for case in [*training, *held_out] for file in _case_files(case)]
    return _Brief(
        epochs=epochs or NUM_EPOCHS,
        num_updates=epochs * num_batches if epochs else NUM_EPOCHS * EPOCH_LENGTH,
        options=brief,
        files=tuple(
            (os.path.abspath(file), state.st_size, state.st_mtime_ns)
            for file, state in ((file, file.stat()) for file in files)
        ),
    )


def _case_files(case: Mapping[str, Any]) -> list[Path]:
    """Image files and label of a case."""
    images = case["image"] if isinstance(case["image"], list) else [case["image"]]
    return [Path(file) for file in (*images, case["label"])]


def _digest(*content: Any) -> str:
    """What tells trainings of other recipes, options or files apart in a journal."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_width(bundle: Path, selection: Selection, max_features: int, copy: Path) -> Path:
    """A bundle of another width, with the configs of this one."""
    export_bundle(replace(selection, max_features=max_features), copy, overwrite=True)
    train = read_json(copy / "configs" / "train.json")
    own = read_json(bundle / "configs" / "train.json")
    own["network_def"] = train["network_def"]
    write_text(copy / "configs" / "train.json", json.dumps(own, indent=4) + "\n")
    copyfile(bundle / "configs" / "evaluate.json", copy / "configs" / "evaluate.json")
    return copy


@contextmanager
def _work_folder(work_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The folder of trainings: a given one, or a temporary one."""
    if work_dir is not None:
        folder = Path(os.path.realpath(work_dir))
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="monai_xtiny_") as name:
        yield Path(os.path.realpath(name))
