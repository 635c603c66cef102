"""What people look at: the ladder as a table, the sensitivity curve, the model card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from monai_xtiny.selection import Selection

if TYPE_CHECKING:
    from monai_xtiny.evaluation import Evaluation

CARD_TEMPLATE = "README.md.jinja"


@dataclass(frozen=True)
class Plane:
    """One slice of a case to look at: image, label and prediction, (rows, columns[, RGB])."""

    case: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def ladder_table(selection: Selection) -> str:
    """The ladder as text: width, parameters, GMACs, mean sensitivity, votes, the choice."""
    rows = [("width", "parameters", "GMACs", "sensitivity", "votes", "")]
    for rung in selection.table.ladder:
        share = selection.votes.get(rung.max_features, 0.0)
        rows.append(
            (
                str(rung.max_features),
                f"{rung.num_parameters:,}",
                f"{rung.gmacs:.3f}",
                f"{np.mean(rung.sensitivity):.4g}",
                f"{share:.0%}" if share else "",
                "<- selected" if rung.max_features == selection.max_features else "",
            )
        )
    sizes = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            [*(cell.rjust(size) for cell, size in zip(row[:5], sizes, strict=True)), row[-1]]
        ).rstrip()
        for row in rows
    )


def search_summary(selection: Selection, bundle: str | os.PathLike[str]) -> str:
    """The choice in words, the time it took, and where the bundle is."""
    rung, full, table = selection.rung, selection.table.ladder[0], selection.table
    sure = "" if selection.confidence is None else f", confidence {selection.confidence:.0%}"
    seconds = table.seconds
    return (
        f"selected width {rung.max_features}: {rung.num_parameters:,} parameters, "
        f"{full.num_parameters / rung.num_parameters:.0f} times fewer than the full network's "
        f"{full.num_parameters:,} (method {selection.method}{sure})\n"
        f"{len(table.images)} images: loaded in {seconds['load']:.1f} s, "
        f"scored in {seconds['score']:.1f} s\n"
        f"bundle: {os.path.abspath(bundle)}"
    )


def plot_sensitivity(selection: Selection, path: str | os.PathLike[str]) -> Path:
    """Draw mean sensitivity against width, with the spread over initialisations and the choice.

    Args:
        selection: the choice and the table it was made from.
        path: of the PNG; its folder must exist.

    Returns:
        The path.
    """
    table = selection.table
    widths = table.widths
    curves = np.asarray([table.curve(index) for index in range(len(table.seeds))])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    # A constant curve of zeros has no logarithm.
    curves = np.maximum(curves, np.finfo(float).tiny)
    centre = np.exp(np.log(curves).mean(axis=0))
    if len(curves) > 1:
        axes.fill_between(
            widths, curves.min(axis=0), curves.max(axis=0), alpha=0.2, label="range over seeds"
        )
    label = "sensitivity" if len(curves) == 1 else f"geometric mean of {len(curves)} seeds"
    axes.plot(widths, centre, "o-", label=label)
    rung = selection.rung
    axes.axvline(rung.max_features, color="tab:red", linestyle="--", linewidth=1)
    axes.annotate(
        f"selected: {rung.max_features}\n{rung.num_parameters:,} parameters",
        (rung.max_features, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(6, 0),
        textcoords="offset points",
        color="tab:red",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.invert_xaxis()
    axes.set_xlabel("width cap (features a stage at most)")
    axes.set_ylabel("Jacobian sensitivity at initialisation")
    axes.set_title(f"{len(table.images)} images, method {selection.method}")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    target = Path(path)
    figure.savefig(target, dpi=120, metadata={"Software": None})
    return target


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
    order = [i for i in np.argsort(case_dice)[::-1].tolist() if np.isfinite(case_dice[i])]
    if not order:
        raise ValueError("no case has a label: there is nothing to draw")
    rows = [order[0], order[len(order) // 2], order[-1]]
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
    target = Path(path)
    figure.savefig(target, dpi=90, metadata={"Software": None})
    return target


def template_environment(templates: str | os.PathLike[str]) -> Environment:
    """Jinja as the templates of text want it: an unknown name is an error, tags leave no lines."""
    return Environment(
        loader=FileSystemLoader(os.fspath(templates)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def model_card(
    selection: Selection,
    *,
    name: str,
    label_names: tuple[str, ...],
    kind: str,
    templates: str | os.PathLike[str],
    evaluation: Evaluation | None = None,
    num_epochs: int | None = None,
) -> str:
    """The bundle's README, with the headings that the MONAI Model Zoo asks for.

    Args:
        selection: the choice and the table it was made from.
        name: of the bundle.
        label_names: of the classes, background first.
        kind: ``volumes``, ``slices`` or ``images``.
        templates: folder that holds the card's template.
        evaluation: of the trained network, with ``overlay.png`` beside the card.
        num_epochs: that it was trained for, where known.
    """
    environment = template_environment(templates)
    environment.filters["md"] = _escape_markdown
    environment.filters["number"] = _format_number
    table = selection.table
    return environment.get_template(CARD_TEMPLATE).render(
        name=name,
        label_names=label_names,
        kind=kind,
        selection=selection,
        rung=selection.rung,
        full=table.ladder[0],
        plan=table.plan,
        table=table,
        evaluation=evaluation,
        num_epochs=num_epochs,
        means={rung.max_features: float(np.mean(rung.sensitivity)) for rung in table.ladder},
    )


def _format_number(value: float, digits: int) -> str:
    """A number for a table, which says so where there is none."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "n/a"


def _escape_markdown(text: str) -> str:
    """Text with Markdown's and HTML's marks made harmless."""
    return "".join(f"\\{mark}" if mark in "\\`*[]<>|$" else mark for mark in str(text))
