"""What people look at: curves of the scores, and cases with their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from monai_xtiny.bundle.records import ranked_cases
from monai_xtiny.bundle.summary import compared_images
from monai_xtiny.selection.rule import Race, Selection
from monai_xtiny.system.files import atomic_write


@dataclass(frozen=True)
class Plane:
    """One slice of a case to look at: image, label and prediction, (rows, columns[, RGB])."""

    case: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def plot_sensitivity(selection: Selection, path: str | os.PathLike[str]) -> Path:
    """Draw the scores against width, with their spread over initializations, votes and the choice.

    Args:
        selection: the choice and the table it was made from.
        path: of the PNG; its folder must exist.

    Returns:
        The path.
    """
    table = selection.table
    is_aligned = any(rung.alignment for rung in table.ladder)
    count = 1 + is_aligned + (selection.race is not None)
    figure = Figure(figsize=(7, 1.4 + 2.8 * count), layout="constrained")
    panels = figure.subplots(count, sharex=True, squeeze=False)[:, 0]
    if selection.race is not None:
        draw_race(panels[0], selection.race, selection.max_features)
    draw_sensitivity(panels[-1], selection)
    if is_aligned:
        draw_alignment(panels[-2], selection)
    rung = selection.rung
    for axes in panels:
        axes.axvline(rung.max_features, color="tab:red", linestyle="--", linewidth=1)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    panels[0].annotate(
        f"selected: {rung.max_features}\n{rung.num_parameters:,} parameters",
        (rung.max_features, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(6, 0),
        textcoords="offset points",
        color="tab:red",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes = panels[-1]
    axes.set_xscale("log", base=2)
    labels = [
        f"{width}\n{selection.votes[width]:.0%}" if width in selection.votes else str(width)
        for width in table.widths
    ]
    axes.set_xticks(table.widths, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    axes.set_xlabel("width cap (features per stage at most), and its share of the votes")
    sure = "" if selection.confidence is None else f", confidence {selection.confidence:.0%}"
    panels[0].set_title(f"{len(table.images)} images, method {selection.method}{sure}")
    return _save_png(figure, path, dpi=120)


def draw_sensitivity(axes: Axes, selection: Selection) -> None:
    """Sensitivity of each width on the images that all were scored on, with its band."""
    table = selection.table
    sensitivities = {
        rung.max_features: np.mean(table.compared(rung), axis=1) for rung in table.ladder
    }
    _draw_band(axes, sensitivities, is_log=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    images = compared_images(table)
    where = f"\n(on {images})" if images else ""
    axes.set_ylabel(f"Jacobian sensitivity at initialization{where}")


def draw_alignment(axes: Axes, selection: Selection) -> None:
    """Alignment of the widths that have it, with its band, and the rule's threshold."""
    alignments = {
        rung.max_features: np.mean(rung.alignment, axis=1)
        for rung in selection.table.ladder
        if rung.alignment
    }
    _draw_band(axes, alignments, is_log=False)
    if selection.threshold is not None:
        label = f"threshold {selection.threshold:g}"
        axes.axhline(selection.threshold, color="gray", linestyle=":", label=label)
    axes.set_ylabel("alignment (share of image features kept)")
    axes.set_ylim(bottom=0)


def draw_race(axes: Axes, race: Race, chosen: int) -> None:
    """Dice of each width that was trained, with the interval of its difference from the chosen."""
    level = next(row.dice for row in race.widths if row.max_features == chosen)
    widths = [row.max_features for row in race.widths]
    dice = np.array([row.dice for row in race.widths])
    ends = level + np.array([(row.low, row.high) for row in race.widths]).T
    errors = np.abs(np.stack([np.minimum(ends[0], dice), np.maximum(ends[1], dice)]) - dice)
    label = f"{race.num_updates} updates, {race.num_cases} cases held out"
    if len(widths) > 1:
        label += ", 95 % intervals"
    axes.errorbar(widths, dice, errors, fmt="o-", capsize=3, label=label)
    axes.set_ylabel("Dice of brief trainings")


def _draw_band(axes: Axes, values: Mapping[int, np.ndarray], *, is_log: bool) -> None:
    """Mean over initializations of each width, geometric for logarithms, and 80 % of them."""
    # A constant curve of zeros has no logarithm.
    tiny = np.finfo(float).tiny
    arrays = [np.log(np.maximum(item, tiny)) if is_log else item for item in values.values()]
    shown = np.exp if is_log else np.asarray
    widths = list(values)
    if max(len(array) for array in arrays) > 1:
        low, high = (shown([np.quantile(array, q) for array in arrays]) for q in (0.1, 0.9))
        axes.fill_between(widths, low, high, alpha=0.2, label="80 % of initializations")
    center = shown([array.mean() for array in arrays])
    counts = sorted({len(array) for array in arrays})
    if counts == [1]:
        label = "one initialization"
    else:
        numbers = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        label = f"{'geometric ' if is_log else ''}mean of {numbers} initializations"
    axes.plot(widths, center, "o-", label=label)


def plot_overlay(
    planes: Sequence[Plane], case_dice: Sequence[float], path: str | os.PathLike[str]
) -> Path:
    """Draw the best, the median and the worst case: image, label, prediction.

    Args:
        planes: one slice of every case.
        case_dice: mean Dice of every case; NaN where a case has no class, which is not drawn.
        path: of the PNG; its folder must exist.

    Returns:
        The path.

    Raises:
        ValueError: no case has a Dice.
    """
    rows = ranked_cases(case_dice)
    figure = Figure(figsize=(9, 9), layout="constrained")
    for panels, rank, index in zip(
        figure.subplots(3, 3), ("best", "median", "worst"), rows, strict=True
    ):
        plane = planes[index]
        titles = (
            f"{rank}: {plane.case}",
            "label",
            f"prediction, Dice of the case {case_dice[index]:.3f}",
        )
        layers = (None, plane.label, plane.prediction)
        for axes, title, layer in zip(panels, titles, layers, strict=True):
            image = plane.image.astype(np.float64)
            low, high = image.min(), image.max()
            axes.imshow((image - low) / (high - low if high > low else 1), cmap="gray")
            if layer is not None:
                axes.imshow(
                    np.ma.masked_equal(layer, 0), cmap="tab10", vmin=0, vmax=9, alpha=0.5,
                    interpolation="nearest",
                )  # fmt: skip
            axes.set_title(title, fontsize=9, parse_math=False)
            axes.set_axis_off()
    return _save_png(figure, path, dpi=90)


def _save_png(figure: Figure, path: str | os.PathLike[str], *, dpi: int) -> Path:
    """Write a figure whole or not at all, without the version that drew it."""
    with atomic_write(path) as part:
        figure.savefig(part, dpi=dpi, format="png", metadata={"Software": None})
    return Path(path)
