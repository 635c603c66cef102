"""Curves of a report, as SVG that stands in a page and takes its colors and its font."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import matplotlib
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from monai_xtiny.bundle.figures import draw_alignment, draw_race, draw_sensitivity
from monai_xtiny.bundle.records import LearningCurve
from monai_xtiny.selection.rule import Selection

# Colors that matplotlib draws with, and the page's own that take their place.
_COLORS = {
    "#010203": "--ink", "#040506": "--muted", "#070809": "--rule", "#0a0b0c": "--accent",
    "#0d0e0f": "--mark", "#101112": "--paper",
}  # fmt: skip
_INK, _MUTED, _RULE, _ACCENT, _MARK, _PAPER = _COLORS
# Inches: one unit of the SVG is a pixel where the page is narrow.
_SIZE = (4.8, 3.0)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text, in the page's font
    "svg.hashsalt": "report",
    "font.size": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.framealpha": 0.85,
    "legend.facecolor": _PAPER,
    "legend.edgecolor": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _RULE,
    "lines.markersize": 4,
    "axes.prop_cycle": cycler(color=[_ACCENT, _MARK]),
}


@dataclass(frozen=True)
class Chart:
    """A curve for a page.

    Args:
        svg: markup, with ``role="img"`` and its words for who cannot see it.
        caption: what it shows, in a sentence.
    """

    svg: Markup
    caption: str


def choice_charts(selection: Selection) -> tuple[Chart, ...]:
    """Curves that a choice rests on: alignment where it was measured, and sensitivity.

    Args:
        selection: of a search; one without scores, of an imported network, has no curves.
    """
    table = selection.table
    if not table.seeds:
        return ()
    charts = []
    if any(rung.alignment for rung in table.ladder):
        charts.append(
            _chart(
                partial(_draw_over_widths, draw_alignment, selection=selection),
                "alignment",
                "Alignment of each width that was aligned: the share of the images' features that "
                "its random network keeps.",
            )
        )
    charts.append(
        _chart(
            partial(_draw_over_widths, draw_sensitivity, selection=selection),
            "sensitivity",
            "Jacobian sensitivity of each width at initialization.",
        )
    )
    return tuple(charts)


def race_chart(selection: Selection) -> Chart | None:
    """Dice of brief trainings against width; ``None`` where there were none."""
    race = selection.race
    if race is None:
        return None
    draw = partial(draw_race, race=race, chosen=selection.max_features)
    return _chart(
        partial(_draw_over_widths, lambda axes, _: draw(axes), selection=selection),
        "race",
        "Dice of brief trainings, with the intervals of the difference from the chosen width.",
    )


def learning_chart(curve: LearningCurve | None) -> Chart | None:
    """Loss and validation Dice against epochs; ``None`` where no training left them."""
    if curve is None or not curve.epochs:
        return None
    return _chart(
        partial(_draw_learning, curve=curve),
        "learning",
        "Loss of the training crops, and mean Dice of the cases held out.",
    )


def _draw_over_widths(
    draw: Callable[[Axes, Selection], None], axes: Axes, *, selection: Selection
) -> None:
    """One panel against width, with the chosen one marked."""
    draw(axes, selection)
    axes.set_ylabel(axes.get_ylabel().partition(" (")[0])
    axes.axvline(
        selection.max_features, color=_MARK, linestyle="--", linewidth=1,
        label=f"chosen width {selection.max_features}",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    widths = selection.table.widths
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(widths[0] * 2**0.5, widths[-1] / 2**0.5)
    axes.set_xlabel("width cap")
    for line in axes.lines:
        if line.get_linestyle() == ":":
            line.set_color(_MUTED)
    axes.legend(loc="best")


def _draw_learning(axes: Axes, *, curve: LearningCurve) -> None:
    """Both curves of a training, each on its own axis."""
    axes.plot(curve.epochs, curve.losses, color=_ACCENT, label="training loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    measured = [
        (epoch, dice)
        for epoch, dice in zip(curve.epochs, curve.dice, strict=True)
        if dice is not None
    ]
    if not measured:
        axes.legend(loc="best")
        return
    beside = axes.twinx()
    beside.spines["right"].set_visible(True)
    beside.plot(*zip(*measured, strict=True), "o-", color=_MARK, label="validation Dice")
    beside.set_ylabel("mean Dice")
    beside.set_ylim(min(0.0, *(dice for _, dice in measured)), 1)
    lines = [*axes.lines, *beside.lines]
    beside.legend(lines, [str(line.get_label()) for line in lines], loc="center right")


def _chart(draw: Callable[[Axes], None], name: str, caption: str) -> Chart:
    """One panel as SVG; its bytes follow from what is drawn."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.grid(linewidth=0.6)
        draw(axes)
        stream = StringIO()
        figure.savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None}
        )
    return Chart(_page_svg(stream.getvalue(), name, caption), caption)


def _page_svg(text: str, name: str, caption: str) -> Markup:
    """What matplotlib wrote, without its own head, with the page's colors and names of its own."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Names that nothing refers to would be there twice, with two charts in one page.
    named = set(re.findall(r"[(\"]#([\w-]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in named else "", body)
    for mark in named:
        body = body.replace(f'"{mark}"', f'"{name}-{mark}"').replace(f"#{mark}", f"#{name}-{mark}")
    body = body.replace("xlink:href", "href")
    for color, variable in _COLORS.items():
        body = body.replace(color, f"var({variable})")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", body)
    _, size, inner = re.split(r"(viewBox=\"[^\"]*\")[^>]*>", body, maxsplit=1)
    words = f'role="img" aria-label="{escape(caption)}"'
    return Markup(f'<svg class="chart" {size} {words}>{inner.strip()}')
