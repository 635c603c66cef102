from __future__ import annotations

import pytest

from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.choice import Selection


@pytest.fixture(params=[1, 3], ids=["one seed", "three seeds"])
def paper_choice(request, plan_2d) -> Selection:
    rows = tuple((2.0 + seed, 1.0) for seed in range(request.param))
    ladder = tuple(
        Rung(width, (width,) * 4, 1000 * width, 1010 * width, width / 10, rows)
        for width in (32, 16, 8, 4, 2, 1)
    )
    table = ScoreTable(
        plan_2d, ladder, tuple(range(request.param)), ("a.png", "b.png"),
        {"load": 1.0, "score": 2.0, "total": 3.0}, {},
    )  # fmt: skip
    return Selection("paper", 8, {8: 1.0}, None if request.param == 1 else 1.0, table)
