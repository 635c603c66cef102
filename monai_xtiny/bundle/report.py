"""``docs/report.html``: a bundle in one page, of what the stages have left in it so far."""

from __future__ import annotations

import os
import re
import shlex
from base64 import b64encode
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from monai_xtiny import __version__
from monai_xtiny.bundle.charts import choice_charts, learning_chart, race_chart
from monai_xtiny.bundle.drawing import drawn_stages
from monai_xtiny.bundle.exclusive import exclusive
from monai_xtiny.bundle.folder import PANELS, REPORT, SPLIT, THUMBNAILS, Bundle
from monai_xtiny.bundle.imported import is_imported
from monai_xtiny.bundle.measured import own_learning_curve, trained_epochs
from monai_xtiny.bundle.records import (
    class_results,
    ranked_cases,
    read_held_out,
    read_speed,
)
from monai_xtiny.bundle.sheets import is_sheet_of
from monai_xtiny.bundle.summary import advice, budget_sentence, comparison, description
from monai_xtiny.bundle.templates import page_environment, printable
from monai_xtiny.scores.table import Rung
from monai_xtiny.selection.rules import find_rule
from monai_xtiny.system.files import write_text

PAGE_TEMPLATE = "report.html.jinja"


@exclusive
def write_report(
    bundle: Bundle, output: str | os.PathLike[str] | None = None, *, private: bool = False
) -> Path:
    """Write a bundle's report: one file that needs no other, nor a network.

    Args:
        bundle: the bundle, or its folder.
        output: file to write; default: ``docs/report.html`` in the bundle.
        private: leave out images and the names of cases.

    Returns:
        The file's path.

    Raises:
        BlockingIOError: another process writes the bundle.
        FileNotFoundError: there is no bundle.
        ValueError: what a stage left in it is damaged.
    """
    page = report_page(bundle, private=private)
    return write_text(bundle.path(REPORT) if output is None else output, page)


def report_page(bundle: Bundle, *, name: str | None = None, private: bool = False) -> str:
    """The report as HTML, which follows from the bundle's files alone.

    Args:
        bundle: the bundle.
        name: of it; default: its folder's.
        private: leave out images and the names of cases.

    Raises:
        ValueError: what a stage left in the bundle is damaged.
    """
    selection, plan = bundle.selection, bundle.plan
    table, rung = selection.table, selection.rung
    imported = is_imported(selection)
    rule = None if imported else find_rule(selection.method)
    curve = own_learning_curve(bundle)
    evaluation = read_held_out(bundle)
    case_dice = () if evaluation is None else evaluation.case_dice
    shown = ranked_cases(case_dice) if np.isfinite(case_dice).any() else ()
    environment = page_environment()
    environment.filters.update(
        signed=_signed,
        fixed=_fixed,
        count=_count,
        score=_score,
        duration=_duration,
        breakable=_breakable,
    )
    return environment.get_template(PAGE_TEMPLATE).render(
        name=name or bundle.name,
        quoted_name=shlex.quote(name or bundle.name),
        label_names=bundle.label_names,
        colors=[to_hex(colormaps["tab10"](index % 10)) for index in range(plan.out_channels)],
        kind=bundle.kind,
        unit="pixels" if bundle.kind == "images" else "mm",
        elements="pixels" if bundle.kind == "images" else "voxels",
        is_imported=imported,
        is_private=private,
        version=__version__,
        plan=plan,
        selection=selection,
        table=table,
        rung=rung,
        full=table.ladder[0],
        stages=drawn_stages(plan, rung.features_per_stage),
        ladder=[(row, _mean_band(row), float(_mean(table.compared(row)))) for row in table.ladder],
        description=_without_markdown(description(selection)) if rule else "",
        voters="" if rule is None else rule.voters(table),
        comparison="" if imported else comparison(table),
        budget=budget_sentence(selection),
        advice="" if imported else advice(selection),
        choice_charts=choice_charts(selection),
        race_chart=race_chart(selection),
        curve=curve,
        learning_chart=learning_chart(curve),
        num_epochs=trained_epochs(bundle),
        is_trained=bundle.path(SPLIT).is_file(),
        evaluation=evaluation,
        results=() if evaluation is None else class_results(evaluation, bundle.label_names[1:]),
        shown=[
            (rank, evaluation.cases[index], case_dice[index])
            for rank, index in zip(("best", "median", "worst"), shown, strict=False)
            if evaluation is not None
        ],
        panels=None if private or not shown else _sheet(bundle, PANELS, 3),
        thumbnails=None if private else _sheet(bundle, THUMBNAILS, len(table.images)),
        speed=read_speed(bundle),
    )


def _without_markdown(text: str) -> str:
    """What the card says, for a page that has no Markdown and no references."""
    return text.replace("`", "").replace("see References", "see Cite")


def _sheet(bundle: Bundle, name: str, count: int) -> str | None:
    """A sheet of images as a data address; ``None`` where there is none of so many."""
    path = bundle.path(name)
    if not is_sheet_of(path, count):
        return None
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode('ascii')}"


def _mean(values: tuple[tuple[float, ...], ...]) -> float:
    """Mean over initializations and images; NaN without any."""
    return float(np.mean(values)) if values else float("nan")


def _mean_band(rung: Rung) -> tuple[float, float, float] | None:
    """Mean alignment, and the 10th and 90th percentile of the initializations' means."""
    if not rung.alignment:
        return None
    means = np.mean(rung.alignment, axis=1)
    low, high = np.quantile(means, (0.1, 0.9))
    return float(means.mean()), float(low), float(high)


def _breakable(name: str) -> Markup:
    """A name that may be continued on the next line after a mark, and is escaped."""
    pieces = re.split(r"(?<=[_/.-])", printable(name))
    return Markup("<wbr>").join(pieces)


def _count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def _fixed(value: float | None, digits: int) -> str:
    """A number for a table, which says so where there is none."""
    return f"{value:.{digits}f}" if value is not None and np.isfinite(value) else "n/a"


def _score(value: float) -> str:
    """A sensitivity with four digits, and no power of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _signed(value: float, digits: int) -> str:
    """A difference, with a true minus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _duration(seconds: float) -> str:
    """Seconds, or minutes from 100 seconds on."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
