"""The model card, the bundle's README: written whole by the exporter, renewed in parts.

What a command renews stands between two marks, ``<!-- xtiny:performance -->`` and
``<!-- /xtiny:performance -->`` for example; all else is its owner's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from monai_xtiny.bundle.folder import data_kind
from monai_xtiny.bundle.imported import is_imported
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.summary import (
    advice,
    budget_sentence,
    comparison,
    description,
    orientation_sentence,
)
from monai_xtiny.bundle.templates import template_environment
from monai_xtiny.bundled.summaries import summary_notes, summary_rows, tolerance_text
from monai_xtiny.selection.rule import Selection
from monai_xtiny.selection.rules import find_rule

CARD_TEMPLATE = "README.md.jinja"
IMPORTED_CARD_TEMPLATE = "README_nnunet.md.jinja"
# What the width decides, and what is measured with the weights.
CHOICE_PARTS = ("description", "plan", "ladder", "cost", "limitations")
MEASURED_PARTS = ("weights", "performance")


def model_card(
    selection: Selection,
    *,
    name: str,
    label_names: tuple[str, ...],
    evaluation: Evaluation | None = None,
    num_epochs: int | None = None,
    former_width: int | None = None,
    origin: Mapping[str, object] | None = None,
) -> str:
    """The bundle's README, with the headings that the MONAI Model Zoo asks for.

    Args:
        selection: the choice and the table it was made from.
        name: of the bundle.
        label_names: of the classes, background first.
        evaluation: of the trained network, with ``overlay.png`` beside the card.
        num_epochs: that it was trained for, where known.
        former_width: that brief trainings on labeled cases moved the choice away from.
        origin: of a network that was imported, ``configuration`` and the like, for the parts that
            are written once.
    """
    environment = template_environment()
    environment.filters["md"] = _escape_markdown
    measured = {
        "evaluation": evaluation,
        "num_epochs": num_epochs,
        **({} if evaluation is None else _performance(evaluation, label_names)),
    }
    if is_imported(selection):
        return environment.get_template(IMPORTED_CARD_TEMPLATE).render(
            name=name,
            label_names=label_names,
            kind=data_kind(selection.table.plan),
            plan=selection.table.plan,
            rung=selection.rung,
            **measured,
            origin=origin or {},
        )
    table = selection.table
    rule = find_rule(selection.method)
    return environment.get_template(CARD_TEMPLATE).render(
        name=name,
        label_names=label_names,
        kind=data_kind(table.plan),
        selection=selection,
        rung=selection.rung,
        full=table.ladder[0],
        plan=table.plan,
        table=table,
        **measured,
        former_width=former_width,
        means={rung.max_features: float(np.mean(table.compared(rung))) for rung in table.ladder},
        comparison=comparison(table),
        alignments={
            rung.max_features: float(np.mean(rung.alignment))
            for rung in table.ladder
            if rung.alignment
        },
        description=description(selection),
        budget=budget_sentence(selection),
        orientation=orientation_sentence(table),
        voters=rule.voters(table),
        advice="" if former_width is not None else advice(selection),
    )


def renewed_card(text: str, card: str, parts: Sequence[str]) -> str:
    """A card as its owner left it, with some parts of a new one.

    Args:
        text: the card as it is.
        card: the new one, of :func:`model_card`.
        parts: names of the parts to take from it.

    Raises:
        ValueError: the card has lost a mark.

    >>> marked = "Mine. <!-- xtiny:cost -->{}<!-- /xtiny:cost --> Mine too."
    >>> renewed_card(marked.format("old"), marked.format("new"), ["cost"])
    'Mine. <!-- xtiny:cost -->new<!-- /xtiny:cost --> Mine too.'
    """
    for part in parts:
        start, end = _part(text, part)
        first, last = _part(card, part)
        text = text[:start] + card[first:last] + text[end:]
    return text


def check_marks(text: str) -> None:
    """Refuse, before anything is measured, a card whose parts could not be renewed.

    Raises:
        ValueError: the card has lost a mark.
    """
    for part in (*CHOICE_PARTS, *MEASURED_PARTS):
        _part(text, part)


def _part(text: str, part: str) -> tuple[int, int]:
    """Where a part of a card begins and ends, between its marks."""
    opening, closing = f"<!-- xtiny:{part} -->", f"<!-- /xtiny:{part} -->"
    found = re.findall(f"{re.escape(opening)}|{re.escape(closing)}", text)
    if found != [opening, closing]:
        raise ValueError(
            f"the card docs/README.md needs the line {opening!r} and, after it, {closing!r}, once "
            "each: put them around what commands may rewrite"
        )
    return text.index(opening) + len(opening), text.index(closing)


def _performance(evaluation: Evaluation, label_names: Sequence[str]) -> dict[str, object]:
    """What the card's part about the performance is made of."""
    summary = evaluation.summary(label_names[1:])
    return {
        "summary": summary,
        "rows": summary_rows(summary),
        "notes": summary_notes(summary),
        "tolerance": "" if evaluation.nsd_tolerance is None else tolerance_text(summary),
    }


def _escape_markdown(text: str) -> str:
    """Text with Markdown's and HTML's marks made harmless."""
    line = " ".join(str(text).splitlines())
    return "".join(f"\\{mark}" if mark in "\\`*[]<>|$" else mark for mark in line)
