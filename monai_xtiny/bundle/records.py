"""What training, evaluation and deployment left in a bundle, read for those who look at it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from monai_xtiny.bundle.folder import DEPLOYMENT, EVALUATION, LEARNING_CURVE, WEIGHTS, Bundle
from monai_xtiny.bundle.results import Evaluation, evaluation_from_dict
from monai_xtiny.system.files import digest_file, read_json


@dataclass(frozen=True)
class LearningCurve:
    """The course of a training.

    Args:
        epochs: from 1 on.
        losses: mean over the steps of each epoch.
        dice: mean over held-out cases and foreground classes; ``None`` where an epoch ended without
            a validation.
    """

    epochs: tuple[int, ...]
    losses: tuple[float, ...]
    dice: tuple[float | None, ...]

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch and Dice of the best validation; ``None`` without one."""
        measured = [
            (epoch, dice)
            for epoch, dice in zip(self.epochs, self.dice, strict=True)
            if dice is not None
        ]
        return max(measured, key=lambda point: point[1], default=None)


@dataclass(frozen=True)
class Estimate:
    """A mean over cases, with its 95 % interval.

    Args:
        mean: over the cases where the value is defined; ``None``: there are none.
        low: lower end; ``None`` where fewer than two cases tell.
        high: upper end.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ClassResult:
    """What a trained network is worth on one class.

    Args:
        label: name of the class.
        num_cases: held out that have it.
        measures: means by the names of :data:`monai_xtiny.bundled.summaries.COLUMNS`, as far as
            they were measured.
        case_dice: of each case that has it, in their order.
    """

    label: str
    num_cases: int
    measures: Mapping[str, Estimate]
    case_dice: tuple[float, ...]


@dataclass(frozen=True)
class SpeedRow:
    """One engine and number of threads of ``docs/deploy.json``.

    Args:
        network: ``full-width`` or ``selected``.
        max_features: width cap.
        engine: that ran it.
        num_threads: intra-op threads.
        kib: size of its file, KiB.
        peak_mib: largest resident memory of its process, MiB.
        network_ms: median of a pass, ms.
        network_p95_ms: 95th percentile of the same.
        image_ms: median from file to labels, ms; ``None`` for volumes.
        speedup: times as fast as the full width in the same engine; ``None`` where that was not
            timed.
    """

    network: str
    max_features: int
    engine: str
    num_threads: int
    kib: float
    peak_mib: float
    network_ms: float
    network_p95_ms: float
    image_ms: float | None
    speedup: float | None


@dataclass(frozen=True)
class Speed:
    """What ``deploy`` measured.

    Args:
        device: its name.
        size: of the image, (x, y[, z]).
        max_difference: largest difference of a logit between ONNX Runtime and PyTorch.
        dice: mean Dice of the exported network; ``None`` where it was not measured.
        dice_int8: of the quantized one, likewise.
        rows: one per engine and number of threads.
        is_of_weights: whether the bundle's weights are those that were exported; deploy of earlier
            versions does not tell, and counts as such.
    """

    device: str
    size: tuple[int, ...]
    max_difference: float
    dice: float | None
    dice_int8: float | None
    rows: tuple[SpeedRow, ...]
    is_of_weights: bool = True


def read_learning_curve(bundle: Bundle, *, has_table: bool = True) -> LearningCurve | None:
    """The curve of the last training, from its table or from what was evaluated since.

    Args:
        bundle: whose curve it is.
        has_table: whether the table, if there is one, is of the bundle's weights.

    Returns:
        ``None`` where no training left one.

    Raises:
        ValueError: the table is damaged.
    """
    path = bundle.path(LEARNING_CURVE)
    if has_table and path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return _curve_of(rows, path)
    evaluation = bundle.path(EVALUATION)
    kept = read_json(evaluation).get("learning_curve") if evaluation.is_file() else None
    return None if not kept else _curve_of(kept, evaluation)


def curve_rows(curve: LearningCurve | None) -> list[dict[str, float | None]]:
    """A curve in JSON's types, as ``docs/evaluation.json`` keeps it."""
    if curve is None:
        return []
    return [
        {"epoch": epoch, "train_loss": loss, "val_mean_dice": dice}
        for epoch, loss, dice in zip(curve.epochs, curve.losses, curve.dice, strict=True)
    ]


def read_held_out(bundle: Bundle) -> Evaluation | None:
    """What the trained weights are worth on cases held out; ``None`` where nobody measured it.

    Raises:
        ValueError: ``docs/evaluation.json`` is damaged, or of other classes than the bundle's.
    """
    path = bundle.path(EVALUATION)
    if not path.is_file():
        return None
    try:
        found = evaluation_from_dict(read_json(path))
        for table in (found.dice, found.hd95):
            if len(table) != len(found.cases):
                raise ValueError(f"{len(table)} rows for {len(found.cases)} cases")
            if any(len(row) != len(bundle.label_names) - 1 for row in table):
                raise ValueError(f"a row is not of {len(bundle.label_names) - 1} classes")
            # Sums refuse what is no number.
            [sum(value for value in row if value is not None) for row in table]
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is no evaluation of this bundle ({error}): run evaluate again"
        ) from error
    return found


def class_results(evaluation: Evaluation, label_names: Sequence[str]) -> tuple[ClassResult, ...]:
    """What an evaluation says of each foreground class, with 95 % intervals.

    Args:
        evaluation: of the cases held out.
        label_names: of the foreground classes.
    """
    results = []
    for index, found in enumerate(evaluation.summary(label_names)["classes"]):
        dice = (row[index] for row in evaluation.dice)
        defined = tuple(value for value in dice if value is not None)
        measures = {
            name: Estimate(item["mean"], item["low"], item["high"])
            for name, item in found["measures"].items()
        }
        results.append(ClassResult(found["name"], len(defined), measures, defined))
    return tuple(results)


def ranked_cases(case_dice: Sequence[float]) -> tuple[int, int, int]:
    """The best, the median and the worst case.

    Args:
        case_dice: mean Dice of every case; NaN where a case has no class.

    Raises:
        ValueError: no case has a Dice.

    >>> ranked_cases([0.5, float("nan"), 0.9, 0.7])
    (2, 3, 0)
    """
    order = [i for i in np.argsort(case_dice)[::-1].tolist() if np.isfinite(case_dice[i])]
    if not order:
        raise ValueError("no case has a label: there is nothing to draw")
    return order[0], order[len(order) // 2], order[-1]


def read_speed(bundle: Bundle) -> Speed | None:
    """What ``deploy`` measured; ``None`` where it never ran.

    Raises:
        ValueError: ``docs/deploy.json`` is damaged.
    """
    path = bundle.path(DEPLOYMENT)
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        timings = content["timings"]
        full = {
            (row["engine"], row["num_threads"]): float(row["network_ms"])
            for row in timings
            if row["network"] != "selected"
        }
        return Speed(
            device=str(content["device"]),
            size=tuple(int(edge) for edge in content["size"]),
            max_difference=float(content["max_difference"]),
            dice=_number(content.get("dice")),
            dice_int8=_number(content.get("dice_int8")),
            rows=tuple(_speed_row(row, full) for row in timings),
            is_of_weights=content.get("weights_file_sha256") in (None, _digest_of_weights(bundle)),
        )
    except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{str(path)!r} is no table of deploy ({error!r}): run deploy again"
        ) from error


def _digest_of_weights(bundle: Bundle) -> str:
    file = bundle.path(WEIGHTS)
    return digest_file(file) if file.is_file() else ""


def _speed_row(row: Mapping[str, Any], full: Mapping[tuple[str, int], float]) -> SpeedRow:
    """One row, compared with the full width in the same engine."""
    own = float(row["network_ms"])
    wide = full.get((row["engine"], row["num_threads"]))
    return SpeedRow(
        network=str(row["network"]),
        max_features=int(row["max_features"]),
        engine=str(row["engine"]),
        num_threads=int(row["num_threads"]),
        kib=float(row["num_bytes"]) / 1024,
        peak_mib=float(row["peak_mib"]),
        network_ms=own,
        network_p95_ms=float(row["network_p95_ms"]),
        image_ms=_number(row.get("picture_ms")),
        speedup=None if wide is None or row["network"] != "selected" else wide / own,
    )


def _curve_of(rows: Sequence[Mapping[str, Any]], path: Path) -> LearningCurve:
    """The curve of rows with ``epoch``, ``train_loss`` and ``val_mean_dice``."""
    try:
        curve = LearningCurve(
            tuple(int(row["epoch"]) for row in rows),
            tuple(float(row["train_loss"]) for row in rows),
            tuple(_number(row["val_mean_dice"]) for row in rows),
        )
        if not all(-inf < value < inf for value in (*curve.losses, *filter(None, curve.dice))):
            raise ValueError("a number is not finite")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} holds no learning curve ({error!r}): remove it, or train again"
        ) from error
    return curve


def _number(value: Any) -> float | None:
    """A number, or ``None`` for none."""
    if value is None or value == "":
        return None
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number
