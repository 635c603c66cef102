from __future__ import annotations

import json

import numpy as np
import pytest

from monai_xtiny.selection.paper import select_paper
from tests.conftest import DATA

CASES = json.loads((DATA / "paper_selection.json").read_text())["cases"]
WIDTHS = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_select_paper_equals_the_published_selections(case) -> None:
    if case["selected"] is None:
        with pytest.raises(ValueError, match="too few"):
            select_paper(case["widths"], case["sensitivity"])
    else:
        assert select_paper(case["widths"], case["sensitivity"]) == case["selected"]


def test_select_paper_has_all_22_cases() -> None:
    assert len(CASES) == 22
    assert sum(case["selected"] is None for case in CASES) == 1


@pytest.mark.parametrize("scale, shift", [(3.0, 0.0), (1e-6, 5.0), (1e6, -2.0)])
def test_select_paper_ignores_affine_changes_of_the_curve(scale, shift) -> None:
    curve = np.asarray(CASES[1]["sensitivity"])
    assert select_paper(WIDTHS, scale * curve + shift) == select_paper(WIDTHS, curve)


def test_select_paper_refuses_ascending_widths() -> None:
    with pytest.raises(ValueError, match="must descend"):
        select_paper(WIDTHS[::-1], range(10))


def test_select_paper_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="give one each"):
        select_paper(WIDTHS, range(9))


def test_select_paper_needs_five_finite_widths() -> None:
    with pytest.raises(ValueError, match="4 widths with finite scores"):
        select_paper(WIDTHS, [1, 2, 3, 4] + [float("nan")] * 6)
