"""From labeled images to a tiny trained network in one command: ``auto``."""

from __future__ import annotations

import glob
import os
import shlex
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_xtiny.cli.bundles import deploy, evaluate, opened_to_run, parse_minutes
from monai_xtiny.cli.job import Job, as_typed
from monai_xtiny.cli.options import SearchOptions, parse_int
from monai_xtiny.cli.stages import find_labels, race_folder, search, search_and_race

if TYPE_CHECKING:
    from monai_xtiny.bundle.folder import Bundle

# Of the whole time: how long the search may ask for more, how long widths may race, and what is
# left for evaluation and deployment.
SEARCH_SHARE, RACE_SHARE, REST_SHARE = 0.1, 0.2, 0.15
# What it takes about to time the network beside the full one, in four engines.
BENCHMARK_SECONDS = 240
# What was decided of a training, so that it goes on as it began.
PACE_FILE = "eval/auto.json"


@as_typed
def auto(
    data: str,
    bundle: str,
    max_minutes: float | None = None,
    epochs: int | None = None,
    label_names: str | None = None,
    spatial_dims: int | None = None,
    group: str | None = None,
    max_parameters: int | None = None,
    max_gmacs: float | None = None,
    max_latency_ms: float | None = None,
    debug: bool = False,
) -> Job:
    """Search, train, evaluate and deploy: a tiny network from a folder of labeled images.

    What is done already is skipped: the same command goes on where it was stopped. Without labels
    it ends after the search.

    Args:
        data: nnU-Net data set (imagesTr, labelsTr), MSD dataset.json, or images without labels.
        bundle: folder to write, OUT/NAME_segmentation.
        max_minutes: of all, shared out among the steps; default: as long as it takes.
        epochs: of the training; default: as many as fit the time, at most those of train.json.
        label_names: names of the classes with commas, background first.
        spatial_dims: 2 or 3; default: 3 for volumes.
        group: which cases are of one patient: a regular expression whose first group in the name
            of a case is the patient, or a JSON file of cases and their patients.
        max_parameters: of the network: the best width within the limits is chosen.
        max_gmacs: of one forward pass on one patch, in 1e9 multiply-accumulates.
        max_latency_ms: of one forward pass on one patch, measured here with ONNX Runtime on the
            CPU, ms.
        debug: show tracebacks.
    """

    def run() -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("auto runs in one process: start it without torchrun")
        clock = TimePlan(parse_minutes(max_minutes))
        if not (os.path.exists(data) or glob.has_magic(data)):
            raise FileNotFoundError(f"no such file or folder: {data!r}: check --data")
        labeled = find_labels(data)
        count = None if epochs is None else parse_int("epochs", epochs)
        if count == 0:
            raise ValueError("--epochs is 0: give at least 1")
        for option, value in (("--group", group), ("--epochs", epochs)):
            if labeled is None and value is not None:
                raise ValueError(
                    f"{option} is of trainings, and {data!r} has no labels: leave it out"
                )
        print(clock.plan(is_labeled=labeled is not None), flush=True)
        options = SearchOptions(
            images=data,
            bundle=bundle,
            label_names=label_names,
            spatial_dims=spatial_dims,
            method="bayes",
            num_images=None,
            seed=369,
            num_seeds=None,
            max_seconds=clock.share(SEARCH_SHARE),
            max_memory_gb=None,
            plans=None,
            configuration="2d",
            device="auto",
            max_parameters=max_parameters,
            max_gmacs=max_gmacs,
            max_latency_ms=max_latency_ms,
        )
        if labeled is None:
            _search_alone(options)
            return
        chosen = {} if group is None else {"group": group}
        asked = {
            "--label_names": label_names,
            "--spatial_dims": spatial_dims,
            "--group": group,
            "--max_parameters": max_parameters,
            "--max_gmacs": max_gmacs,
            "--max_latency_ms": max_latency_ms,
        }
        _refuse_other_options(bundle, asked)
        _search(options, clock, {**labeled, **chosen})
        _train(bundle, clock, count, labeled, chosen, asked)
        _evaluate(bundle, labeled, group)
        _deploy(bundle, clock)
        _tell_next(bundle)

    return Job(run, debug, resumes=True)


@dataclass(frozen=True)
class TimePlan:
    """How the time is shared out among the steps.

    Args:
        minutes: of all; ``None`` is no limit.
    """

    minutes: float | None

    def __post_init__(self) -> None:
        if self.minutes == 0:
            raise ValueError("--max_minutes is 0: give minutes above 0")
        object.__setattr__(self, "_start", time.monotonic())

    def share(self, part: float) -> float | None:
        """Seconds that a part of the time is."""
        return None if self.minutes is None else 60 * part * self.minutes

    def left(self) -> float | None:
        """Seconds until what is kept for the steps after the training."""
        if self.minutes is None:
            return None
        elapsed = time.monotonic() - self._start  # type: ignore[attr-defined]
        return 60 * (1 - REST_SHARE) * self.minutes - elapsed

    def plan(self, *, is_labeled: bool) -> str:
        """The steps and their minutes.

        >>> TimePlan(20).plan(is_labeled=True)
        'steps: search 2, race 4, training 11, evaluation and deployment 3 min at most'
        """
        if not is_labeled:
            return "steps: search; there are no labels for more"
        if self.minutes is None:
            return "steps: search, race, training, evaluation, deployment; no limit of time"
        training = 1 - SEARCH_SHARE - RACE_SHARE - REST_SHARE
        shares = (SEARCH_SHARE, RACE_SHARE, training, REST_SHARE)
        return (
            "steps: search {:.3g}, race {:.3g}, training {:.3g}, evaluation and deployment {:.3g} "
            "min at most"
        ).format(*(share * self.minutes for share in shares))


def _search_alone(options: SearchOptions) -> None:
    """Search images without labels, and say what comes next."""
    if _is_bundle(str(options.bundle)):
        _refuse_other_images(options)
        _refuse_other_choice(options)
        _skip("search", str(options.bundle))
    else:
        search(
            images=options.images,
            bundle=str(options.bundle),
            label_names=options.label_names,
            spatial_dims=options.spatial_dims,
            max_parameters=options.max_parameters,
            max_gmacs=options.max_gmacs,
            max_latency_ms=options.max_latency_ms,
            max_seconds=options.max_seconds,
        ).work()
    print(
        f"{options.images} has no labels: label some images, put them as imagesTr and labelsTr "
        "into one folder, and give that as --data to train"
    )


def _search(options: SearchOptions, clock: TimePlan, labeled: Mapping[str, str]) -> None:
    """Search and race, unless a bundle is there and its race has ended."""
    from monai_xtiny.training.race import NothingToCompareError

    root = str(options.bundle)
    kept = race_folder(options, None, labeled)
    if _is_bundle(root):
        if not kept.path.is_dir():
            _refuse_other_choice(options)
            _skip("search", root)
            return
        for name, former in kept.other_options().items():
            option = "--data" if name == "images" else f"--{name}"
            raise ValueError(
                f"the race of {root!r} was begun with another {option} ({former}): go on with the "
                "same command, or give another --bundle"
            )
    _announce("search and race")
    seconds = clock.share(RACE_SHARE)
    minutes = None if seconds is None else seconds / 60
    try:
        search_and_race(options, None, max_minutes=minutes, **labeled)
    except NothingToCompareError as error:  # the network can be trained all the same
        print(f"no race: {error}", flush=True)
        kept.remove()


def _refuse_other_options(bundle: str, asked: Mapping[str, Any]) -> None:
    """Refuse options that a bundle which is being made, or is done, was not made with."""
    from monai_xtiny.system.files import read_json

    decided = Path(bundle) / PACE_FILE
    former = read_json(decided).get("asked") if decided.is_file() else None
    if not isinstance(former, dict):
        return
    for option, value in asked.items():
        if former.get(option) != value:
            raise ValueError(
                f"{option} is {value}, and {bundle!r} was made with {former.get(option)}: give "
                "that, or another --bundle"
            )


def _refuse_other_choice(options: SearchOptions) -> None:
    """Refuse limits, classes or dimensions that the choice of a bundle was not made with."""
    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.data.labels import read_label_names
    from monai_xtiny.selection.limits import checked_limits

    bundle = Bundle.open(str(options.bundle))
    limits = (options.max_parameters, options.max_gmacs, options.max_latency_ms)
    made_with: dict[str, tuple[Any, Any]] = {
        name: (value, getattr(bundle.selection.budget, name, None))
        for name, value in checked_limits(*limits).items()
    }
    if options.label_names is not None:
        names = read_label_names(options.images, options.label_names)
        made_with["label_names"] = (",".join(names), ",".join(bundle.label_names))
    if options.spatial_dims is not None:
        made_with["spatial_dims"] = (options.spatial_dims, bundle.plan.spatial_dims)
    for name, (asked, former) in made_with.items():
        if asked != former:
            raise ValueError(
                f"--{name} is {asked}, and {str(bundle.root)!r} was made with {former}: give that, "
                "or another --bundle"
            )


def _refuse_other_images(options: SearchOptions) -> None:
    """Refuse data of which the bundle's choice has seen no image: they are another data set."""
    from monai_xtiny.bundle.folder import Bundle
    from monai_xtiny.data.cases import find_cases

    bundle = Bundle.open(str(options.bundle))
    scored = bundle.selection.table.images
    known = {case.name for case in find_cases(options.images)}
    if scored and not any(_is_among(name, known) for name in scored):
        raise ValueError(
            f"{str(bundle.root)!r} was searched on other images, {scored[0]} for one, of which "
            f"{options.images} has none: give another --bundle"
        )


def _train(
    bundle: str,
    clock: TimePlan,
    epochs: int | None,
    labeled: Mapping[str, str],
    chosen: Mapping[str, str],
    asked: Mapping[str, Any],
) -> None:
    """Train as many epochs as fit the time, unless that is done."""
    from monai_xtiny.bundle.folder import WEIGHTS, Bundle
    from monai_xtiny.bundle.measured import is_stopped, trained_epochs
    from monai_xtiny.system.files import read_json, write_json
    from monai_xtiny.training.check import check_bundle
    from monai_xtiny.training.labeled import data_options
    from monai_xtiny.training.train import run_training

    opened = Bundle.open(bundle)
    decided = opened.path(PACE_FILE)
    done = trained_epochs(opened) if opened.path(WEIGHTS).is_file() else None
    wanted = read_json(decided) if decided.is_file() else None
    if wanted is not None and epochs is not None and epochs != wanted["epochs"]:
        interval = min(opened.config("train")["val_interval"], epochs)
        wanted = {**wanted, "epochs": epochs, "val_interval": interval}
        write_json(decided, wanted)
    is_over = not is_stopped(opened) if wanted is None else (done or 0) >= wanted["epochs"]
    if done is not None and is_over:
        _refuse_other_cases(opened, labeled)
        _skip("training", f"{opened.path(WEIGHTS)}, {done} epochs")
        return
    _announce("training")
    # A bundle is a program, and this one may have been there before.
    with opened_to_run(bundle, trust=False, quiet=True) as opened:
        checked = check_bundle(
            opened,
            data=labeled.get("data"),
            datalist=labeled.get("datalist"),
            group=chosen.get("group"),
        )
        if checked.problems:
            raise ValueError(
                f"{len(checked.problems)} problems with {checked.num_cases} labeled cases, which "
                f"check lists: {checked.problems[0]}"
            )
        options = {**data_options(labeled.get("data"), labeled.get("datalist")), **chosen}
        if wanted is None:
            wanted = _decide(opened, clock, epochs, options, asked)
        num_epochs, start, before = wanted["epochs"], time.monotonic(), done or 0

        def tell(epoch: int, dice: float) -> None:
            rest = (time.monotonic() - start) / max(epoch - before, 1) * (num_epochs - epoch)
            left = f"{rest / 60:.0f} min" if rest >= 90 else f"{rest:.0f} s"
            print(f"epoch {epoch} of {num_epochs}: Dice {dice:.4f}, {left} left", flush=True)

        length = {name: wanted[name] for name in ("epochs", "val_interval")}
        run_training(opened, {**options, **length}, tell)


def _refuse_other_cases(bundle: Bundle, labeled: Mapping[str, str]) -> None:
    """Refuse data with cases that the weights have neither seen nor been held out from.

    Names tell, and nothing of the bundle is run. Weights without a split of their own, from
    elsewhere, tell nothing.
    """
    from monai_xtiny.bundle.folder import SPLIT
    from monai_xtiny.bundled.cases import find_labeled_cases, name_some
    from monai_xtiny.bundled.splits import Split, read_names

    known = read_names(bundle.path(SPLIT))
    if known is None:
        return
    source = labeled.get("data") or labeled["datalist"]
    found = find_labeled_cases(
        source,
        labeled.get("datalist"),
        os.path.dirname(os.path.abspath(source)),
        file_endings=bundle.config("train")["file_endings"],
        in_channels=bundle.plan.in_channels,
    )
    trained = {name for part in known for name in part}
    names = [name for part in Split(found.cases, found.validation).label_names() for name in part]
    new = sorted(name for name in names if not _is_among(name, trained))
    if new:
        raise ValueError(
            f"{str(bundle.root)!r} was trained on other cases: {len(new)} of {source} are new "
            f"({name_some(new)}): give another --bundle, or train this one on all of them with "
            "its configs/train.json"
        )


def _is_among(label: str, known: Set[str]) -> bool:
    """Whether a path is one of some, which may be relative to a folder above or below.

    >>> _is_among("c1.png", {"site/c1.png"}), _is_among("site/c2.png", {"site/c1.png"})
    (True, False)
    """
    return label in known or any(
        other.endswith(f"/{label}") or label.endswith(f"/{other}") for other in known
    )


def _decide(
    bundle: Bundle,
    clock: TimePlan,
    epochs: int | None,
    options: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Epochs of the training, the distance of its validations, what was asked for; kept there."""
    from monai_xtiny.system.files import write_json
    from monai_xtiny.training.pace import measure_pace

    config = bundle.config("train")
    wanted: dict[str, Any] = {
        "epochs": epochs or config["epochs"],
        "val_interval": config["val_interval"],
    }
    if clock.minutes is not None and epochs is None:
        pace = measure_pace(bundle, options)
        fitting = pace.epochs_within(clock.left() or 0.0)
        if fitting < 1:
            raise ValueError(
                f"--max_minutes is {clock.minutes:g}, and an epoch takes {pace.epoch:.0f} s after "
                f"{pace.start:.0f} s of preparation: give more, or --epochs 1"
            )
        wanted |= {"epochs": min(fitting, config["epochs"]), "val_interval": pace.interval}
        print(f"an epoch takes {pace.epoch:.2g} s: {wanted['epochs']} epochs", flush=True)
    wanted["val_interval"] = min(wanted["val_interval"], wanted["epochs"])
    wanted["asked"] = dict(asked)
    bundle.path(PACE_FILE).parent.mkdir(exist_ok=True)
    write_json(bundle.path(PACE_FILE), wanted)
    return wanted


def _evaluate(bundle: str, labeled: Mapping[str, str], group: str | None) -> None:
    """Measure the cases held out, unless that is done."""
    from monai_xtiny.bundle.folder import EVALUATION

    if _is_newer(bundle, EVALUATION):
        _skip("evaluation", EVALUATION)
        return
    _announce("evaluation")
    # What training held out, whatever the data list says.
    data = labeled.get("data") or str(Path(labeled["datalist"]).parent)
    evaluate(bundle, data=data, group=group).work()


def _deploy(bundle: str, clock: TimePlan) -> None:
    """Export to ONNX, and time that where time is left, unless it is done or cannot be."""
    from monai_xtiny.bundle.folder import DEPLOYMENT, ONNX
    from monai_xtiny.deploy.latency import check_latency

    if _is_newer(bundle, ONNX) and _is_newer(bundle, DEPLOYMENT):
        _skip("deployment", ONNX)
        return
    _announce("deployment")
    try:
        check_latency(1.0)
    except ImportError as error:
        print(f"left out: {error}")
        return
    rest = clock.left()
    is_timed = rest is None or rest + (clock.share(REST_SHARE) or 0) > BENCHMARK_SECONDS
    deploy(bundle, benchmark=is_timed).work()
    if not is_timed:
        print("not timed for want of time: python -m monai_xtiny deploy BUNDLE does it")


def _tell_next(bundle: str) -> None:
    """Where to look, and what to do with what was made."""
    from monai_xtiny.bundle.folder import REPORT

    path = shlex.quote(bundle)
    print(f"the report: {Path(bundle, REPORT)}")
    print(f"label images: python -m monai_xtiny segment {path} IMAGES --output LABELS")


def _is_bundle(bundle: str) -> bool:
    """Whether a bundle is there; one that was being replaced is put back first."""
    from monai_xtiny.bundle.folder import missing_file
    from monai_xtiny.bundle.replace import restore_interrupted

    root = Path(os.path.realpath(bundle))
    restore_interrupted(root)
    return missing_file(root) is None


def _is_newer(bundle: str, name: str) -> bool:
    """Whether a result is there, and newer than the weights."""
    from monai_xtiny.bundle.folder import WEIGHTS

    result, weights = Path(bundle, name), Path(bundle, WEIGHTS)
    return result.is_file() and result.stat().st_mtime_ns >= weights.stat().st_mtime_ns


def _announce(step: str) -> None:
    print(f"== {step}", flush=True)


def _skip(step: str, found: str) -> None:
    print(f"== {step}: done already, {found}", flush=True)
