"""Invented choices, and the card of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monai_xtiny.bundle.card import model_card
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.rule import Race, RacedWidth, Selection

HEADINGS = (
    "Authors", "Tags", "Model Description", "Data", "Performance", "Usage", "System Configuration",
    "Limitations", "Citation", "References",
)  # fmt: skip


def card(selection, labels=("background", "cell")) -> str:
    return model_card(selection, name="x_segmentation", label_names=labels)


def aligned(plan, votes, confidence, threshold: float | None = 0.25) -> Selection:
    """A choice of width 8 by alignment, which wider networks than 32 do not have."""
    rng = np.random.default_rng(0)
    ladder = tuple(
        Rung(
            width, (width,) * 4, 1000 * width, 1010 * width, width / 10, ((2.0, 1.0),),
            tuple(map(tuple, rng.uniform(0.9, 1.1, (4, 2)) * width / 33)) if width <= 32 else (),
        )
        for width in (64, 32, 16, 8, 4, 2, 1)
    )  # fmt: skip
    table = ScoreTable(
        plan, ladder, (1,), ("a.png", "b.png"), {"load": 1.0, "score": 2.0, "total": 3.0}, {},
        (1, 2, 3, 4),
    )  # fmt: skip
    return Selection("alignment", 8, votes, confidence, table, threshold)


# Width 16 ran against its neighbors, and against what was searched.
RACE = Race(
    8, 120, 12, True,
    (
        RacedWidth(32, 0.91, 0.01, 0.002, 0.018),
        RacedWidth(16, 0.90, 0.0, 0.0, 0.0),
        RacedWidth(8, 0.85, -0.05, -0.07, -0.03),
    ),
)  # fmt: skip


def shortened(selection: Selection) -> Selection:
    """The same choice, with widths that are not aligned scored on the first image alone."""
    ladder = tuple(
        rung if rung.alignment else replace(rung, sensitivity=((4.0,),))
        for rung in selection.table.ladder
    )
    return replace(selection, table=replace(selection.table, ladder=ladder))
