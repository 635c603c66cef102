# Written by monai_xtiny 0.2.0, which need not be installed.
"""An evaluation in numbers to be shown: means with intervals, what was missed, the worst cases."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL, NUM_DRAWS, SEED = 0.95, 2000, 0
NUM_WORST = 5
# Draws that are held at a time.
_CHUNK = 100
# What a class is measured by: name, heading of its column, decimals (none: two digits).
COLUMNS = (
    ("dice", "Dice", 3),
    ("nsd", "NSD ({tolerance})", 3),
    ("hd95", "HD95, {length}", 2),
    ("volume_error", "volume error, {volume}", None),
    ("relative_volume_error", "volume error, %", 1),
    ("absolute_volume_error", "absolute volume error, %", 1),
    ("ece", "ECE", 4),
)
# Whose mean over classes says something.
_AVERAGED = ("dice", "nsd", "hd95", "ece")


def summarize(
    cases: Sequence[str],
    values: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    length_unit: str = "mm",
    volume_unit: str = "ml",
    nsd_tolerance: float | None = None,
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Summarize an evaluation, as JSON takes it.

    A mean is over the cases where the measure is defined: those whose label has the class; of
    distances, those where it was found, too; of the calibration error, all. The interval of a mean
    is a percentile bootstrap of patients (of cases, where patients are not known), and ``None``
    where fewer than two have a value. For few patients it is too narrow: 95 % intervals of Dice
    hold the true mean in about 80 % of draws of 5 patients, 90 % of 20, 92 % of 50.

    Args:
        cases: their names.
        values: ``dice`` and, as far as measured, ``nsd``, ``hd95``, ``volume``, ``label_volume``
            and ``ece``, each (cases, classes), NaN where it is not defined.
        class_names: of the foreground classes.
        length_unit: of distances and of the tolerance.
        volume_unit: of volumes.
        nsd_tolerance: distance that NSD still takes for near.
        patients: of each case.

    Raises:
        ValueError: values are not (cases, classes).
    """
    shape = (len(cases), len(class_names))
    measured = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    for name, value in measured.items():
        if value.shape != shape:
            raise ValueError(f"{name} is of shape {value.shape}: {shape} (cases, classes) is due")
    measured |= _volume_errors(measured)
    names = [name for name, _, _ in COLUMNS if name in measured]
    table = np.stack([measured[name] for name in names], axis=2)
    groups = list(cases) if patients is None else list(patients)
    draws = bootstrap_means(table.reshape(len(cases), -1), groups).reshape(-1, *table.shape[1:])
    worst = _worst(cases, measured["dice"])
    return {
        "format_version": 1,
        "num_cases": len(cases),
        "num_patients": None if patients is None else len(set(groups)),
        "length_unit": length_unit,
        "volume_unit": volume_unit,
        "nsd_tolerance": nsd_tolerance,
        "interval": {"level": LEVEL, "num_draws": NUM_DRAWS, "seed": SEED},
        "classes": [
            {
                "class": number + 1,
                "name": class_name,
                **_found(cases, measured, number),
                "measures": {
                    name: _estimate(table[:, number, column], draws[:, number, column], groups)
                    for column, name in enumerate(names)
                },
                "worst": worst[number],
            }
            for number, class_name in enumerate(class_names)
        ],
        "mean": {
            name: _mean_estimate(table[..., column], draws[..., column], groups)
            for column, name in enumerate(names)
            if name in _AVERAGED
        },
        "worst": worst[-1],
    }


def bootstrap_means(
    values: np.ndarray, patients: Sequence[str], *, num_draws: int = NUM_DRAWS, seed: int = SEED
) -> np.ndarray:
    """Means of columns over cases whose patients are drawn with replacement.

    Args:
        values: (cases, columns), NaN where a case has none.
        patients: of each case; all cases of a patient are drawn together.
        num_draws: of as many patients as there are.
        seed: of the draws, which are the same for all columns.

    Returns:
        (num_draws, columns), NaN where no case that was drawn has a value.
    """
    _, index = np.unique(list(patients), return_inverse=True)
    count = int(index.max()) + 1
    is_defined = np.isfinite(values)
    sums, numbers = np.zeros((2, count, values.shape[1]))
    np.add.at(sums, index, np.where(is_defined, values, 0))
    np.add.at(numbers, index, is_defined)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, num_draws, _CHUNK):
        size = min(_CHUNK, num_draws - start)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=size)
        with np.errstate(invalid="ignore"):
            means.append((drawn @ sums) / (drawn @ numbers))
    return np.concatenate(means)


def summary_table(summary: Mapping[str, Any]) -> str:
    """A summary as a table of text, and below it what was missed and the worst cases.

    Args:
        summary: of :func:`summarize`.
    """
    rows = summary_rows(summary)
    sizes = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(sizes[0]), *map(str.rjust, row[1:], sizes[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *summary_notes(summary)])


def summary_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a summary's table: the heading, a row per class, the mean over classes."""
    names = {name for item in summary["classes"] for name in item["measures"]}
    columns = [column for column in COLUMNS if column[0] in names]
    units = {"length": summary["length_unit"], "volume": summary["volume_unit"]}
    near = tolerance_text(summary) if summary["nsd_tolerance"] is not None else ""
    heading = [text.format(tolerance=near, **units) for _, text, _ in columns]
    rows = [["class", "cases", *heading]]
    for item in summary["classes"]:
        cells = [_cell(item["measures"][name], digits) for name, _, digits in columns]
        rows.append([item["name"], str(item["num_with"]), *cells])
    if len(summary["classes"]) > 1:
        cells = [_cell(summary["mean"].get(name), digits) for name, _, digits in columns]
        rows.append(["mean", str(summary["num_cases"]), *cells])
    return rows


def tolerance_text(summary: Mapping[str, Any]) -> str:
    """The tolerance of NSD with its unit.

    >>> tolerance_text({"nsd_tolerance": 1.0, "length_unit": "pixels"})
    '1 pixel'
    """
    number, unit = summary["nsd_tolerance"], summary["length_unit"]
    return f"{number:g} {unit.removesuffix('s') if number == 1 else unit}"


def summary_notes(summary: Mapping[str, Any]) -> list[str]:
    """What a summary's table leaves out, a sentence each: what was missed, and the worst cases."""
    notes = []
    for item in summary["classes"]:
        for key, words in (
            ("missed", "not found in {} of {} cases that have it"),
            ("false", "found in {} of {} cases that lack it"),
        ):
            total = item["num_with"] if key == "missed" else item["num_without"]
            if item[f"num_{key}"]:
                found = words.format(item[f"num_{key}"], total)
                names = _first_names(item[key], item[f"num_{key}"])
                notes.append(f"{item['name']}: {found}: {names}")
    lists = [(f"lowest Dice of {item['name']}", item["worst"]) for item in summary["classes"]]
    if len(lists) > 1:
        lists.append(("lowest mean Dice", summary["worst"]))
    for words, cases in lists:
        if cases:
            worst = ", ".join(f"{case['case']} {case['dice']:.3f}" for case in cases)
            notes.append(f"{words}: {worst}")
    return notes


def _volume_errors(measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Volume of the prediction minus the label's, and its share of that, where the label has it."""
    if "volume" not in measured:
        return {}
    label = np.where(measured["label_volume"] > 0, measured["label_volume"], np.nan)
    error = measured["volume"] - label
    relative = 100 * error / label
    return {
        "volume_error": error,
        "relative_volume_error": relative,
        "absolute_volume_error": np.abs(relative),
    }


def _found(cases: Sequence[str], measured: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    """How many cases have a class, and in which it was missed, or found where it is not."""
    has = np.isfinite(measured["dice"][:, number])
    content: dict[str, Any] = {"num_with": int(has.sum()), "num_without": int((~has).sum())}
    if "volume" not in measured:
        return {**content, "num_missed": 0, "missed": [], "num_false": 0, "false": []}
    is_found = measured["volume"][:, number] > 0
    # The largest first.
    order = np.argsort(-measured["volume"][:, number], kind="stable")
    by_label = np.argsort(-measured["label_volume"][:, number], kind="stable")
    missed = [cases[index] for index in by_label if has[index] and not is_found[index]]
    false = [cases[index] for index in order if is_found[index] and not has[index]]
    return {
        **content,
        "num_missed": len(missed),
        "missed": missed[:NUM_WORST],
        "num_false": len(false),
        "false": false[:NUM_WORST],
    }


def _estimate(values: np.ndarray, draws: np.ndarray, patients: Sequence[str]) -> dict[str, Any]:
    """Mean of a column over its cases, with its interval."""
    is_defined = np.isfinite(values)
    mean = float(values[is_defined].mean()) if is_defined.any() else None
    known = {patient for patient, defined in zip(patients, is_defined, strict=True) if defined}
    return _with_interval(mean, draws, len(known), int(is_defined.sum()))


def _mean_estimate(
    values: np.ndarray, draws: np.ndarray, patients: Sequence[str]
) -> dict[str, Any]:
    """Mean over classes of their means (cases, classes), with its interval."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of classes that no case has
        mean = float(np.nanmean(np.nanmean(values, axis=0)))
        means = np.nanmean(draws, axis=1)
    is_defined = np.isfinite(values).any(axis=1)
    known = {patient for patient, defined in zip(patients, is_defined, strict=True) if defined}
    return _with_interval(
        mean if is_defined.any() else None, means, len(known), int(is_defined.sum())
    )


def _with_interval(
    mean: float | None, draws: np.ndarray, num_patients: int, num_cases: int
) -> dict[str, Any]:
    """A mean as the file has it."""
    ends: list[float | None] = [None, None]
    if num_patients > 1:
        tail = (1 - LEVEL) / 2
        ends = [_rounded(end) for end in np.nanquantile(draws, [tail, 1 - tail])]
    shown = None if mean is None else _rounded(mean)
    return {"mean": shown, "low": ends[0], "high": ends[1], "num_cases": num_cases}


def _worst(cases: Sequence[str], dice: np.ndarray) -> list[list[dict[str, Any]]]:
    """The cases of lowest Dice, of each class, and at last of the mean over a case's classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cases without any class
        columns = [*dice.T, np.nanmean(dice, axis=1)]
    return [
        [
            {"case": cases[index], "dice": _rounded(column[index])}
            for index in np.argsort(column, kind="stable")[:NUM_WORST]
            if np.isfinite(column[index])
        ]
        for column in columns
    ]


def _rounded(value: float) -> float:
    """A number of six digits."""
    return float(f"{value:.6g}")


def _cell(estimate: Mapping[str, Any] | None, digits: int | None) -> str:
    """A mean with its interval in a cell."""
    if estimate is None:
        return ""
    shown = [estimate[key] for key in ("mean", "low", "high") if estimate[key] is not None]
    if not shown:
        return "n/a"
    if digits is None:
        largest = max(map(abs, shown)) or 1
        digits = max(1 - math.floor(math.log10(largest)), 0)
    # The sum turns -0.0 into 0.0.
    texts = [f"{round(value, digits) + 0.0:.{digits}f}" for value in shown]
    return texts[0] if len(texts) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def _first_names(names: Sequence[str], total: int) -> str:
    """Names, and how many more there are."""
    more = f" and {total - len(names)} more" if total > len(names) else ""
    return ", ".join(names) + more
