from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.choice import (
    Selection,
    select_width,
    selection_from_dict,
    selection_to_dict,
)
from monai_xtiny.selection.paper import select_paper
from tests.conftest import DATA

CASES = json.loads((DATA / "paper_selection.json").read_text())["cases"]
WIDTHS = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


def make_table(plan, curves) -> ScoreTable:
    """A table whose every row of images is constant."""
    ladder = tuple(
        Rung(width, (width,), 10 * width, 11 * width, 0.1, tuple((c[i], c[i]) for c in curves))
        for i, width in enumerate(WIDTHS)
    )
    return ScoreTable(plan, ladder, tuple(range(len(curves))), ("a", "b"), {}, {})


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


def test_select_width_with_one_seed_is_the_published_rule(plan_2d) -> None:
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]]))
    assert selection.max_features == CASES[1]["selected"] == selection.rung.max_features
    assert selection.confidence is None
    assert selection.votes == {8: 1.0}


def test_select_width_counts_votes_and_takes_the_wider_on_a_tie(plan_2d) -> None:
    eight = [1, 1, 1, 1, 1, 1, 1, 1, 1, 5]
    wide = [1.0, 1.02, 0.98, 1.0, 3.0, 0.5, 2.5, 0.2, 2.8, 0.1]
    assert select_width(make_table(plan_2d, [eight, wide])).max_features == 128
    selection = select_width(make_table(plan_2d, [eight, wide, eight]))
    assert selection.max_features == 8
    assert selection.confidence == pytest.approx(2 / 3)
    assert sum(selection.votes.values()) == pytest.approx(1)


def test_select_width_refuses_an_unknown_method(plan_2d) -> None:
    with pytest.raises(ValueError, match="unknown method 'best': give one of paper"):
        select_width(make_table(plan_2d, [range(10)]), "best")


def test_selection_survives_its_dictionary(plan_2d) -> None:
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]] * 2))
    content = json.loads(json.dumps(selection_to_dict(selection)))
    assert selection_from_dict(content, selection.table) == selection


@pytest.mark.parametrize("field", ["method", "selected", "votes", "confidence"])
def test_selection_from_dict_names_the_missing_field(plan_2d, field) -> None:
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]]))
    content = selection_to_dict(selection)
    del content[field]
    with pytest.raises(ValueError, match=field):
        selection_from_dict(content, selection.table)


def test_selection_from_dict_refuses_a_width_outside_the_ladder(plan_2d) -> None:
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]]))
    content = selection_to_dict(replace(selection, max_features=8))
    content["selected"]["max_features"] = 7
    with pytest.raises(ValueError, match="not in the ladder"):
        selection_from_dict(content, selection.table)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"confidence": "high"}, "no selection .*'high'"),
        ({"confidence": 7}, "shares from 0 to 1, and one is 7"),
        ({"votes": {"8": -1}}, "shares from 0 to 1, and one is -1"),
        ({"votes": {"wide": 1}}, "no selection .*'wide'"),
        ({"threshold": "low"}, "no selection .*'low'"),
    ],
    ids=["confidence", "confidence over 1", "negative vote", "vote for a word", "threshold"],
)
def test_selection_from_dict_refuses_what_is_no_share(plan_2d, changed, message) -> None:
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]] * 2))
    with pytest.raises(ValueError, match=message):
        selection_from_dict({**selection_to_dict(selection), **changed}, selection.table)


def test_selection_of_alignment_keeps_its_threshold(plan_2d) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]])
    selection = Selection("alignment", 8, {8: 0.6, 4: 0.4}, 0.6, table, 0.31)
    content = json.loads(json.dumps(selection_to_dict(selection)))
    assert content["threshold"] == 0.31
    assert selection_from_dict(content, table) == selection
    assert "threshold" not in selection_to_dict(select_width(table))
