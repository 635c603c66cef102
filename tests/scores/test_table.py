from __future__ import annotations

import json
from dataclasses import replace

import pytest

from monai_xtiny.scores.table import table_from_dict, table_to_dict
from monai_xtiny.search.run import run_search


@pytest.fixture
def small(plan_2d):
    """A ladder of six widths."""
    return replace(plan_2d, features_per_stage=(32, 32, 32, 32))


def test_table_survives_json(small, sample_2d) -> None:
    table = run_search(sample_2d, small, progress=False)
    assert table_from_dict(json.loads(json.dumps(table_to_dict(table)))) == table


@pytest.mark.parametrize("field", ["plan", "ladder", "seeds", "images", "seconds"])
def test_table_from_dict_names_the_missing_field(small, sample_2d, field) -> None:
    content = table_to_dict(run_search(sample_2d, small, progress=False))
    del content[field]
    with pytest.raises(ValueError, match=field):
        table_from_dict(content)


def test_table_from_dict_refuses_alignment_of_unknown_initialisations(small, sample_2d) -> None:
    content = table_to_dict(run_search(sample_2d, small, align=True, progress=False))
    content["ladder"][2]["alignment"] *= 2
    with pytest.raises(ValueError, match="width 8 has 2 rows of alignment and the table 1"):
        table_from_dict(content)


def test_table_from_dict_refuses_missing_scores(small, sample_2d) -> None:
    content = table_to_dict(run_search(sample_2d, small, progress=False))
    content["ladder"][2]["sensitivity"] = [[1.0]]
    with pytest.raises(ValueError, match="width 8 lacks scores: expected 1 seeds of 3 images"):
        table_from_dict(content)


def test_table_from_dict_refuses_widths_that_do_not_descend(small, sample_2d) -> None:
    content = table_to_dict(run_search(sample_2d, small, device="cpu", progress=False))
    content["ladder"] = content["ladder"][::-1]
    with pytest.raises(ValueError, match=r"the ladder \(1, 2, .* must descend"):
        table_from_dict(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "a lot"], ids=str)
def test_table_from_dict_refuses_a_score_that_is_no_number(small, sample_2d, value) -> None:
    content = table_to_dict(run_search(sample_2d, small, device="cpu", progress=False))
    content["ladder"][1]["sensitivity"] = [[1.0, value, 2.0]]
    with pytest.raises(ValueError, match="not finite|no table of scores .*'a lot'"):
        table_from_dict(content)
