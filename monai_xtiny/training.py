"""Train a width of the ladder by the emitted recipe, and measure it on cases held out."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import compute_hausdorff_distance

from monai_xtiny.export import export_bundle
from monai_xtiny.labels import PlainPath

if TYPE_CHECKING:
    from monai_xtiny.selection import Selection


@dataclass(frozen=True)
class Training:
    """One training, and what the network was worth on the cases held out.

    Args:
        max_features: width cap.
        fold: of the split by case.
        seed: of initialisation and augmentation.
        epochs: trained.
        curve: (epoch, mean Dice over cases and foreground classes), as training measured it.
        cases: labels of the cases held out.
        dice: of ``model.pt`` on the image's own grid, one row a case, one value a foreground class;
            ``None`` where the class is absent from the label.
        hd95: 95th percentile of the surface distance, likewise, in mm (pixels where images have no
            spacing); ``None`` where label or prediction is empty.
        seconds: of training alone.
    """

    max_features: int
    fold: int
    seed: int
    epochs: int
    curve: tuple[tuple[int, float], ...]
    cases: tuple[str, ...]
    dice: tuple[tuple[float | None, ...], ...]
    hd95: tuple[tuple[float | None, ...], ...]
    seconds: float

    @property
    def mean_dice(self) -> float:
        """Mean over the foreground classes of the mean over the cases that have the class."""
        means = self.class_dice
        return sum(means) / len(means)

    @property
    def class_dice(self) -> tuple[float, ...]:
        """Mean Dice of each foreground class, over the cases that have it."""
        return tuple(_mean(column) for column in zip(*self.dice, strict=True))

    @property
    def class_hd95(self) -> tuple[float, ...]:
        """Mean HD95 of each foreground class, over the cases where it is defined."""
        return tuple(_mean(column) for column in zip(*self.hd95, strict=True))


def train_width(
    selection: Selection,
    max_features: int,
    *,
    data: str | os.PathLike[str],
    bundle_dir: str | os.PathLike[str],
    epochs: int,
    val_interval: int = 5,
    fold: int = 0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Training:
    """Emit the bundle of one width, train it by its own ``train.json``, and evaluate it.

    Args:
        selection: any choice from the ladder; its width is replaced.
        max_features: width to train.
        data: nnU-Net data set root (``imagesTr``, ``labelsTr``).
        bundle_dir: where the trained bundle shall be; one that is there is replaced.
        epochs: to train.
        val_interval: epochs between two validations.
        fold: of the split by case.
        seed: of initialisation and augmentation.
        overrides: further keys of ``train.json``.
        progress: called with epoch and mean Dice after each validation.

    Returns:
        The measured training.

    Raises:
        ValueError: the width is not in the ladder.
    """
    if max_features not in selection.table.widths:
        raise ValueError(
            f"width {max_features} is not in the ladder {selection.table.widths}: give one of it"
        )
    chosen = dataclasses.replace(selection, max_features=max_features)
    bundle = export_bundle(chosen, bundle_dir, overwrite=True)
    options = {
        "dataset_dir": PlainPath(os.fspath(data)),
        "epochs": epochs,
        "val_interval": min(val_interval, epochs),
        "fold": fold,
        "seed": seed,
        **(overrides or {}),
    }
    train = _workflow(bundle, ("train",), options)
    evaluator = train.parser.get_parsed_content("validate#evaluator")
    trainer = train.parser.get_parsed_content("train#trainer")
    curve: list[tuple[int, float]] = []

    def record(_engine: Engine) -> None:
        curve.append((trainer.state.epoch, evaluator.state.metrics["val_mean_dice"]))
        if progress is not None:
            progress(*curve[-1])

    evaluator.add_event_handler(Events.EPOCH_COMPLETED, record)
    start = time.perf_counter()
    train.run()
    seconds = time.perf_counter() - start
    train.finalize()
    names, dice, hd95 = _evaluate(bundle, options)
    return Training(
        max_features, fold, seed, epochs, tuple(curve), names, dice, hd95, round(seconds, 1)
    )


def training_to_line(training: Training, **keys: Any) -> str:
    """One line of a journal: the keys that tell trainings apart, then the training."""
    return json.dumps({**keys, **asdict(training)}) + "\n"


def training_from_dict(content: Mapping[str, Any]) -> Training:
    """The training of one line of a journal."""
    fields = {field.name: content[field.name] for field in dataclasses.fields(Training)}
    for name in ("curve", "dice", "hd95"):
        fields[name] = tuple(tuple(row) for row in fields[name])
    return Training(**{**fields, "cases": tuple(fields["cases"])})


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a journal; the last one may have been cut off by a kill, and is left out then."""
    file = Path(path)
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _workflow(bundle: Path, names: tuple[str, ...], options: Mapping[str, Any]) -> ConfigWorkflow:
    """Configs of the bundle with overrides, initialised."""
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / f"{name}.json") for name in names],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type=None,
        bundle_root=str(bundle),
        **options,
    )
    workflow.initialize()
    return workflow


def _evaluate(
    bundle: Path, options: Mapping[str, Any]
) -> tuple[
    tuple[str, ...], tuple[tuple[float | None, ...], ...], tuple[tuple[float | None, ...], ...]
]:
    """Names, Dice and HD95 of the cases held out, on the grid of each image."""
    workflow = _workflow(bundle, ("train", "evaluate"), options)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    cases = workflow.parser.get_parsed_content("validate#dataset#data")
    distances: list[tuple[float | None, ...]] = []

    def measure(engine: Engine) -> None:
        for item in cast(list[dict[str, MetaTensor]], engine.state.output):
            prediction, label = item["pred"], item["label"]
            found = compute_hausdorff_distance(
                prediction[None],
                label[None],
                percentile=95,
                spacing=affine_to_spacing(prediction.affine)[: prediction.ndim - 1].tolist(),
            )
            distances.append(_finite(found[0]))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, measure)
    workflow.run()
    workflow.finalize()
    dice = tuple(_finite(row) for row in evaluator.state.metric_details["val_mean_dice"])
    return tuple(os.path.basename(str(case["label"])) for case in cases), dice, tuple(distances)


def _finite(values: torch.Tensor) -> tuple[float | None, ...]:
    """Numbers, with ``None`` for those that are not defined."""
    return tuple(float(value) if torch.isfinite(value) else None for value in values)


def _mean(values: tuple[float | None, ...]) -> float:
    """Mean over the defined values; NaN where there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else float("nan")
