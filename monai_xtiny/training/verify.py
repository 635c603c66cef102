"""A race of brief trainings: the width of a bundle against others of its ladder."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copyfile, copytree, rmtree
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import get_seed, set_determinism

from monai_xtiny.bundle.folder import EVALUATE, TRAIN, Bundle
from monai_xtiny.bundle.writer import emitted_configs, export_bundle
from monai_xtiny.bundled.cases import name_some
from monai_xtiny.bundled.locks import write_lock
from monai_xtiny.bundled.splits import find_patients
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.selection.bayes import unlabeled_belief
from monai_xtiny.selection.choice import with_width
from monai_xtiny.selection.posterior import Belief
from monai_xtiny.system.config_text import check_config_text
from monai_xtiny.system.files import append_line, read_lines, write_json
from monai_xtiny.training.batches import SharedBatches
from monai_xtiny.training.check import check_bundle
from monai_xtiny.training.compare import (
    MIN_DECIDING,
    MIN_HELD_OUT,
    Verification,
    compare_trainings,
    dice_by_width,
    num_patients,
    patients_of,
)
from monai_xtiny.training.labeled import data_options
from monai_xtiny.training.race import (
    MIN_SEEDS,
    NothingToCompareError,
    best_width,
    brief_tolerance,
    leader,
    neighbors,
    next_widths,
)
from monai_xtiny.training.train import Training, train_bundle, training_from_dict

JOURNAL_FILE = "trainings.jsonl"
# A brief training, whatever the number of cases: the learning rate falls with each epoch.
NUM_UPDATES = 120
EPOCH_LENGTH = 20
# Held-out cases of a race, and voxels of its crops in 2D and 3D.
MAX_HELD_OUT = 16
MAX_VOXELS = {2: 128**2, 3: 32**3}
_MAX_TRAININGS = 1000
# Keys of train.json with which batches are not shared: paths in it, and what a caller gives.
_PATHS = ("train#", "train::")
_OWN_KEYS = ("train", "epochs")
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
    bundle_dir: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str] | None = None,
    datalist: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    num_seeds: int | None = None,
    max_minutes: float | None = None,
    fold: int = 0,
    group: str | None = None,
    seed: int = 0,
    work_dir: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[Training], None] | None = None,
) -> Verification:
    """Race the width of a bundle against others of its ladder: brief trainings, all alike.

    The race begins with the bundle's width, and goes on until both neighbors of the smallest width
    within a tolerance of the best have run, and the next wider one where the wider neighbor is the
    best. Those that may be the answer, their neighbors, the bundle's own and the best then run
    again with other seeds, until the intervals of their differences decide, or seeds or time are
    used up. Widths that do not keep to the bundle's budget have no part.

    Every training is the bundle's own ``train.json`` with the ``network_def`` of its width, in a
    temporary bundle, with a learning rate that falls to a fifth. With one seed all widths see the
    same crops, augmented alike. The last weights are measured on the cases that the split holds
    out, at most 16 of them, spread over the patients, which have no part in the training. The
    bundle itself stays as it is.

    Narrow networks learn more slowly, so brief trainings favor the wider. How far is known from
    whole trainings: a width that loses 0.01 in the end is about 0.02 behind after 120 updates
    (docs/benchmarks/race.md). That is the tolerance.

    Args:
        bundle_dir: the bundle.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        datalist: MSD ``dataset.json``; one of the two is needed.
        epochs: over all cases, of whole crops; default: 120 updates of small crops, whatever the
            number of cases.
        num_seeds: trainings of a width at most, at least 2; default: 2, or with ``max_minutes`` as
            many as decide. Of fewer than 8 patients held out no more than 2 are run, since nothing
            is decided by them.
        max_minutes: time after which no training is begun that would not end in it, as far as the
            former ones tell.
        fold: of the split.
        group: which cases are of one patient, so that the split holds out whole patients: a regular
            expression or a JSON file, as training takes it; default: each case is one.
        seed: of the first training; the others count on from it.
        work_dir: folder that keeps a journal of finished trainings, which the same verification,
            or one with more seeds, does not repeat; default: a temporary one.
        overrides: further keys of ``train.json``.
        progress: called with each training, those of the journal too.

    Returns:
        The verification.

    Raises:
        BlockingIOError: another process uses the work folder.
        FileNotFoundError: there is no bundle, or no data.
        NothingToCompareError: of fewer than 2 patients a case with a labeled voxel is held out.
        ValueError: the data do not fit the bundle, or fewer than 2 seeds, 1 epoch or no time are
            asked for.
    """
    start = time.monotonic()
    bundle = Bundle.open(bundle_dir)
    _check_arguments(num_seeds, epochs, max_minutes, work_dir)
    checked = check_bundle(bundle, data=data, datalist=datalist, group=group, fold=None)
    if checked.problems:
        raise ValueError(
            f"{len(checked.problems)} problems with {checked.num_cases} labeled cases, which "
            f"check lists: {checked.problems[0]}"
        )
    options = data_options(data, datalist, group)
    overrides = {**({} if group is None else {"group": group}), **(overrides or {})}
    keys = {"fold": fold, **overrides}
    brief = _brief_training(bundle, {**options, **keys}, epochs)
    digest = _recipe_digest(bundle, keys, brief)
    shared = _shared_batches(bundle, overrides, None if epochs else brief.num_updates)
    with _work_folder(work_dir) as folder:
        journal = folder / JOURNAL_FILE
        done = {
            (line["max_features"], line["seed"]): training_from_dict(line)
            for line in read_lines(journal)
            if line.get("digest") == digest
        }
        took = {key: training.seconds for key, training in done.items()}
        for width, number in done:
            _remove_training(_training_folder(folder, width, number))  # a kill may have left it

        def train(width: int, number: int) -> Training:
            if (width, number) not in done:
                began = time.monotonic()
                copy = _training_folder(folder, width, number)
                done[width, number] = train_bundle(
                    _write_width(bundle, width, copy),
                    data=data,
                    datalist=datalist,
                    epochs=brief.epochs,
                    fold=fold,
                    seed=number,
                    overrides={**brief.options, **overrides, **shared(number)},
                    only_dice=True,
                )
                append_line(journal, {"digest": digest, **asdict(done[width, number])})
                _remove_training(copy)
                took[width, number] = time.monotonic() - began
            if progress is not None:
                progress(done[width, number])
            return done[width, number]

        has_time = _clock(bundle, took, None if max_minutes is None else start + 60 * max_minutes)
        last = seed + (num_seeds or (MIN_SEEDS if max_minutes is None else _MAX_TRAININGS))
        table = bundle.selection.table
        return race_widths(
            bundle.selection.max_features,
            ladder=table.widths,
            among=bundle.selection.fitting_widths,
            belief=unlabeled_belief(table),
            train=train,
            has_time=has_time,
            seeds=range(seed, last),
            num_updates=brief.num_updates,
        )


def race_widths(
    selected: int,
    *,
    ladder: Sequence[int],
    among: Sequence[int],
    belief: Belief,
    train: Callable[[int, int], Training],
    has_time: Callable[..., bool],
    seeds: Sequence[int],
    num_updates: int,
) -> Verification:
    """Run widths until their intervals decide, or seeds or time are used up.

    A width further than the leader's neighbors takes the longest: it runs at first where it leaves
    the time for second trainings of these, else after them.

    Args:
        selected: width that begins.
        ladder: all widths, widest first.
        among: widths of the ladder that may run: of a choice with a budget, those that keep to it.
        belief: what was known of the width before.
        train: trains a width with a seed.
        has_time: whether trainings, each a width and a seed, may begin one after the other.
        seeds: of the trainings of a width.
        num_updates: of a training.

    Raises:
        NothingToCompareError: of fewer than 2 patients a case with a labeled voxel is held out.
        ValueError: the trainings were measured on different cases.
    """
    trainings = [train(selected, seeds[0])]
    cases = trainings[0].evaluation.cases
    labeled = num_patients(trainings)
    if labeled < MIN_HELD_OUT:
        raise NothingToCompareError(
            f"{labeled or 'none'} of the {len(set(patients_of(trainings)))} cases or patients held "
            f"out of the race has a labeled voxel ({name_some(cases)}), and an interval needs "
            f"{MIN_HELD_OUT}: give another --fold, or a --datalist whose validation has some"
        )

    tolerance = brief_tolerance(num_updates)

    def compared() -> Verification:
        found = compare_trainings(
            selected,
            trainings,
            ladder=ladder,
            among=among,
            belief=belief,
            num_updates=num_updates,
        )
        asked = next_widths(among, dice_by_width(trainings), tolerance=tolerance)
        return replace(found, is_decided=found.is_decided and not asked)

    while missing := next_widths(among, dice_by_width(trainings), tolerance=tolerance):
        beside = neighbors(among, leader(dice_by_width(trainings), tolerance=tolerance))
        again = () if missing[0] in beside else itertools.product(beside, seeds[1:2])
        if not has_time((missing[0], seeds[0]), *again):
            break
        trainings.append(train(missing[0], seeds[0]))
    found = compared()

    def run_seeds(number: int) -> bool:
        """Up to a seed, those that may yet be the answer; whether any was left to train."""
        # The bundle's own, which the others are told against; the best, which the leader is
        # compared with; and what later seeds ask for.
        dice = dice_by_width(trainings)
        first = leader(dice, tolerance=tolerance)
        near = neighbors(among, first)
        others = {selected, best_width(dice), *next_widths(among, dice, tolerance=tolerance)}
        widths = {*neighbors(among, found.recommended), *near, *others}
        former = len(trainings)
        order = {width: (width in dice, width in near, width) for width in widths}
        for width in sorted(widths, key=order.__getitem__, reverse=True):
            for seed in range(seeds[0], number + 1):
                if any((item.max_features, item.seed) == (width, seed) for item in trainings):
                    continue
                if not has_time((width, seed)):
                    break  # for a narrower one there may be
                trainings.append(train(width, seed))
        return len(trainings) > former

    # Of few patients further seeds would not decide it either.
    last = len(seeds) if labeled >= MIN_DECIDING else MIN_SEEDS
    for number in seeds[1:last] if not found.is_decided else ():
        has_run = run_seeds(number)
        found = compared()
        # Where they changed the leader its neighbors run as often, before the next seed.
        while next_widths(among, dice_by_width(trainings), tolerance=tolerance):
            if not run_seeds(number):
                break
            found = compared()
        if found.is_decided or not has_run:
            break
    return found


def _shared_batches(
    bundle: Bundle, overrides: Mapping[str, Any], num_updates: int | None
) -> Callable[[int], dict[str, Any]]:
    """Keys of ``train.json`` by which the trainings of a seed share their batches.

    Args:
        bundle: whose configs train.
        overrides: of them; where these change how it trains, each training loads for itself.
        num_updates: of a training; ``None``: of so many that their batches are not kept.
    """
    config = bundle.config("train")
    definition = emitted_configs(bundle.selection)["train"]["train"]["dataloader"]
    is_emitted = config["train"].get("dataloader") == definition
    # Keys may change it from anywhere: those of a config that begin so, and the caller's.
    changing = any(key.startswith(_PATHS) for key in config)
    changing = changing or any(key.startswith(_OWN_KEYS) for key in overrides)
    if not num_updates or not is_emitted or changing:
        return lambda _seed: {}
    batches = SharedBatches(num_updates)
    return lambda seed: {"train#dataloader": batches.dataloader(seed, definition)}


def _clock(
    bundle: Bundle, took: Mapping[tuple[int, int], float], deadline: float | None
) -> Callable[..., bool]:
    """Whether trainings may begin, as far as the former ones tell how long they take.

    Args:
        bundle: of the widths.
        took: seconds of the trainings that are over, by width and seed, with what goes before and
            after; of a journal's the training alone.
        deadline: by ``time.monotonic``; ``None``: there is none.
    """
    macs = {rung.max_features: rung.gmacs for rung in bundle.selection.table.ladder}

    def seconds(width: int) -> float:
        # A wider network takes longer, in proportion at most; later seeds may have to load cases.
        longest = {former: max(took[key] for key in took if key[0] == former) for former, _ in took}
        return min(longest[former] * max(1.0, macs[width] / macs[former]) for former in longest)

    def has_time(*trainings: tuple[int, int]) -> bool:
        missing = [width for width, seed in trainings if (width, seed) not in took]
        if deadline is None or not missing:
            return True
        return time.monotonic() + sum(map(seconds, missing)) <= deadline

    return has_time


def _check_arguments(
    num_seeds: int | None,
    epochs: int | None,
    max_minutes: float | None,
    work_dir: str | os.PathLike[str] | None,
) -> None:
    """Refuse what no verification can be made with."""
    if num_seeds is not None and num_seeds < MIN_SEEDS:
        raise ValueError(
            f"num_seeds is {num_seeds}: give at least {MIN_SEEDS}, since one training does not "
            "show how much trainings differ"
        )
    if num_seeds is not None and num_seeds > _MAX_TRAININGS:
        raise ValueError(f"num_seeds is {num_seeds}: give at most {_MAX_TRAININGS}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}: give at least 1")
    if max_minutes is not None and not 0 < max_minutes < math.inf:
        raise ValueError(f"max_minutes is {max_minutes}: give minutes above 0")
    if work_dir is not None:
        check_config_text(os.path.realpath(work_dir), "work folder")


def _brief_training(bundle: Bundle, options: Mapping[str, Any], epochs: int | None) -> _Brief:
    """What the bundle's ``train.json`` makes of the data, and how long to train on them."""
    parser = ConfigParser(bundle.config("train"))
    parser.update({"bundle_root": str(bundle.root), **options})
    training, held_out = (parser.get_parsed_content(f"{part}_cases") for part in ("train", "val"))
    if len(held_out) >= MIN_HELD_OUT > len(set(_held_out_patients(parser))):
        raise NothingToCompareError(
            f"fold {options['fold']} holds out cases of one patient, and an interval needs "
            f"{MIN_HELD_OUT} patients: label more, or give another --fold"
        )
    if len(held_out) < MIN_HELD_OUT:
        raise NothingToCompareError(
            f"fold {options['fold']} holds out {len(held_out)} of "
            f"{len(training) + len(held_out)} labeled cases, and an interval needs "
            f"{MIN_HELD_OUT}: label more cases, or give another --fold or a --datalist with a "
            "validation section"
        )
    num_batches = math.ceil(len(training) / parser.get_parsed_content("batch_size"))
    files = [file for case in [*training, *held_out] for file in _case_files(case)]
    teacher = parser.get("teacher")
    if isinstance(teacher, str):  # another value is refused by the training
        files += Path(teacher, "models").glob("*.pt")
    return _Brief(
        epochs=epochs or NUM_UPDATES // EPOCH_LENGTH,
        num_updates=epochs * num_batches if epochs else NUM_UPDATES,
        options=brief_options(parser, bundle.plan, epochs=epochs),
        files=tuple(
            (os.path.abspath(file), state.st_size, state.st_mtime_ns)
            for file, state in ((file, file.stat()) for file in files)
        ),
    )


def brief_options(
    parser: ConfigParser,
    plan: UNetPlan,
    *,
    epochs: int | None = None,
    num_updates: int = NUM_UPDATES,
) -> dict[str, Any]:
    """Keys of ``train.json`` for a brief training, alike for every width.

    Once the network is initialized the generators are seeded anew: networks of all widths then see
    the same crops in the same order, augmented alike.

    Args:
        parser: the bundle's ``train.json`` with the labeled data.
        plan: of the bundle.
        epochs: over all cases, of whole crops; default: ``num_updates`` of small ones.
        num_updates: in epochs of ``EPOCH_LENGTH``.
    """
    held_out = spread_over_patients(_held_out_patients(parser))[:MAX_HELD_OUT]
    options: dict[str, Any] = {
        # No validation during training: the held-out cases are for the verdict alone.
        "val_interval": (epochs or num_updates) + 1,
        "validate#dataset#data": f"$list(map(@val_cases.__getitem__, {held_out}))",
        "validate#dataset#cache_rate": 0,
        "tensorboard": False,
        # Nobody reads the Dice of training crops, which takes a tenth of the time.
        "train#trainer#key_train_metric": None,
        "train#trainer#postprocessing": None,
        "initialize": [
            *parser.get("initialize"),
            "$@network_def",
            "$monai.utils.set_determinism(seed=@seed)",
        ],
    }
    if epochs is not None:
        return options
    batch_size, rate, crop, training = (
        parser.get_parsed_content(name)
        for name in ("batch_size", "cache_rate", "trained_size", "train_cases")
    )
    size = brief_crop(crop, plan.strides)
    if plan.slice_axis is not None:  # slices are cropped from volumes
        size.insert(plan.slice_axis, 1)
    options["crop_size"] = size
    options["train#trainer#epoch_length"] = EPOCH_LENGTH
    options["cache_rate"] = min(rate, num_updates * batch_size / max(len(training), 1))
    if len(training) < _MIN_BATCHES * batch_size:
        options["num_workers"] = 0
    return options


def _held_out_patients(parser: ConfigParser) -> list[str]:
    """The patient of each case that the split holds out."""
    cases, labeled = map(parser.get_parsed_content, ("val_cases", "labeled_cases"))
    return find_patients(cases, parser.get("group"), labeled=labeled)


def spread_over_patients(patients: Sequence[str]) -> list[int]:
    """Places of cases, one of each patient, then a second of each, and so on.

    >>> spread_over_patients(["a", "a", "b", "b", "c"])
    [0, 2, 4, 1, 3]
    """
    seen: dict[str, int] = {}
    rounds = []
    for place, patient in enumerate(patients):
        seen[patient] = seen.get(patient, 0) + 1
        rounds.append((seen[patient], place))
    return [place for _, place in sorted(rounds)]


def brief_crop(crop_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """A crop of no more than ``MAX_VOXELS`` voxels, out of another one, which fits the strides.

    Args:
        crop_size: of the whole training, in voxels, a multiple of the strides of all stages.
        strides: of each stage and axis.

    Returns:
        The size in voxels; at least two voxels remain at the last stage, as instance norm needs.

    >>> brief_crop([256, 320], [[1, 1]] + [[2, 2]] * 5)
    [128, 128]
    >>> brief_crop([40, 56, 40], [[1, 1, 1]] + [[2, 2, 2]] * 3)
    [32, 32, 32]
    >>> brief_crop([16, 320, 256], [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]])
    [16, 32, 48]
    """
    factors = [math.prod(axis) for axis in zip(*strides, strict=True)]
    size = [edge // factor for edge, factor in zip(crop_size, factors, strict=True)]
    largest = MAX_VOXELS[len(size)] / math.prod(factors)
    # The longest edge gives way first, a stride at a time.
    while math.prod(size) > max(largest, 2):
        edges = [
            edge * factor if edge > 1 else 0 for edge, factor in zip(size, factors, strict=True)
        ]
        size[edges.index(max(edges))] -= 1
    return [edge * factor for edge, factor in zip(size, factors, strict=True)]


def _case_files(case: Mapping[str, Any]) -> list[Path]:
    """Image files and label of a case."""
    images = case["image"] if isinstance(case["image"], list) else [case["image"]]
    return [Path(file) for file in (*images, case["label"])]


def _recipe_digest(bundle: Bundle, keys: Mapping[str, Any], brief: _Brief) -> str:
    """What tells trainings of other recipes, options or files apart in a journal."""
    train, evaluate = bundle.config("train"), bundle.config("evaluate")
    train.pop("network_def", None)
    scripts = [path.read_text("utf-8") for path in sorted(bundle.path("scripts").glob("*.py"))]
    versions = [torch.__version__, monai.__version__]
    content = [train, evaluate, scripts, asdict(bundle.plan), keys, asdict(brief), versions]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_width(bundle: Bundle, max_features: int, copy: Path) -> Bundle:
    """A bundle of another width, with the configs and the scripts of this one."""
    selection = with_width(bundle.selection, max_features)
    other = Bundle.open(export_bundle(selection, copy, overwrite=True, report=False))
    own = {**bundle.config("train"), "network_def": other.config("train")["network_def"]}
    write_json(other.path(TRAIN), own)
    copyfile(bundle.path(EVALUATE), other.path(EVALUATE))
    if bundle.path("scripts").is_dir():
        copytree(bundle.path("scripts"), other.path("scripts"), dirs_exist_ok=True)
    return other


def _training_folder(folder: Path, max_features: int, seed: int) -> Path:
    """Where a width is trained."""
    return folder / f"width{max_features}_seed{seed}_segmentation"


def _remove_training(copy: Path) -> None:
    """Remove a training's folder, if it is there; a kill leaves no half bundle in its place."""
    hidden = copy.with_name(f".{copy.name}.removed")
    rmtree(hidden, ignore_errors=True)
    if copy.is_dir():
        copy.rename(hidden)
        rmtree(hidden)


@contextmanager
def _work_folder(work_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The folder of trainings: a given one, or a temporary one."""
    if work_dir is not None:
        folder = Path(os.path.realpath(work_dir))
        folder.mkdir(parents=True, exist_ok=True)
        with write_lock(folder):
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="monai_xtiny_") as name:
        yield Path(os.path.realpath(name))
