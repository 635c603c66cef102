from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.alignment import alignment_values, select_alignment
from monai_xtiny.selection.choice import (
    Selection,
    select_width,
    selection_from_dict,
    selection_to_dict,
    suited_method,
    with_width,
)
from monai_xtiny.selection.rule import Budget, Race, RacedWidth
from tests.conftest import DATA
from tests.selection.tables import MEANS, noisy_table

CASES = json.loads((DATA / "paper_selection.json").read_text())["cases"]
WIDTHS = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


def make_table(plan, curves) -> ScoreTable:
    """A table whose every row of images is constant."""
    ladder = tuple(
        Rung(width, (width,), 10 * width, 11 * width, 0.1, tuple((c[i], c[i]) for c in curves))
        for i, width in enumerate(WIDTHS)
    )
    return ScoreTable(plan, ladder, tuple(range(len(curves))), ("a", "b"), {}, {})


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


def test_paper_chooses_by_the_images_that_every_width_was_scored_on(plan_2d) -> None:
    rng = np.random.default_rng(3)
    rows = [tuple(map(float, rng.lognormal(size=4))) for _ in WIDTHS]
    ladder = tuple(
        Rung(width, (width,), 10 * width, 11 * width, 0.1, (row[: 2 if width > 32 else 4],))
        for width, row in zip(WIDTHS, rows, strict=True)
    )
    table = ScoreTable(plan_2d, ladder, (0,), tuple("abcd"), {}, {})
    few = [replace(rung, sensitivity=(rung.sensitivity[0][:2],)) for rung in ladder]
    on_two = replace(table, ladder=tuple(few), images=("a", "b"))
    assert select_width(table, "paper").max_features == select_width(on_two).max_features
    assert table.curve(0) == on_two.curve(0)


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


def test_selection_keeps_its_race(plan_2d) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]])
    race = Race(8, 120, 12, True, (RacedWidth(8, 0.9, 0.01, -0.01, 0.02),))
    selection = Selection("bayes", 8, {8: 0.6, 4: 0.4}, 0.6, table, 0.31, race)
    content = json.loads(json.dumps(selection_to_dict(selection)))
    assert content["race"]["widths"][0]["low"] == -0.01
    assert selection_from_dict(content, table) == selection
    content["race"]["widths"][0]["low"] = float("nan")
    with pytest.raises(ValueError, match="the race holds numbers that are not finite"):
        selection_from_dict(content, table)
    content["race"]["widths"][0] |= {"low": 0.0, "max_features": 16}
    with pytest.raises(ValueError, match=r"the race is of the widths \[16\], and 8 is selected"):
        selection_from_dict(content, table)
    del content["race"]["searched"]
    with pytest.raises(ValueError, match="no selection"):
        selection_from_dict(content, table)


def test_select_width_by_alignment_states_votes_and_confidence(plan_2d) -> None:
    counts = {width: 16 for width in MEANS}
    table = noisy_table(plan_2d, MEANS, 0.05, counts)
    selection = select_width(table, "alignment")
    values = alignment_values(table)
    means = [array.mean() for array in values.values()]
    assert selection.max_features == select_alignment(list(values), means)
    assert selection.confidence == selection.votes[selection.max_features]
    assert suited_method(table) == "bayes"


def test_select_width_by_alignment_of_one_initialization_states_no_confidence(plan_2d) -> None:
    table = noisy_table(plan_2d, MEANS, 0.0, {})
    assert select_width(table, "alignment").confidence is None


def test_select_width_by_alignment_is_not_sure_where_no_width_is_wide_enough(plan_2d) -> None:
    table = noisy_table(
        plan_2d, {width: 0.1 / 32 * width for width in MEANS}, 0.001, dict.fromkeys(MEANS, 8)
    )
    selection = select_width(table, "alignment")
    assert (selection.max_features, selection.confidence, selection.votes) == (32, 0.0, {})


def test_suited_method_is_the_one_that_the_table_was_scored_for(plan_2d) -> None:
    table = noisy_table(plan_2d, MEANS, 0.1, {8: 4, 4: 4})
    assert suited_method(table) == "bayes"
    bare = tuple(replace(rung, alignment=()) for rung in table.ladder)
    assert suited_method(replace(table, ladder=bare)) == "paper"
    assert select_width(table, "paper").confidence is None


@pytest.mark.parametrize(
    "method", ["<script>alert(1)</script>", "a b", "![x](y)", "", "a\nb", "x" * 99]
)
def test_selection_from_dict_refuses_a_method_that_is_no_name(plan_2d, method) -> None:
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]]))
    content = {**selection_to_dict(selection), "method": method}
    with pytest.raises(ValueError, match="method is .*: it must be the name of a rule"):
        selection_from_dict(content, selection.table)


@pytest.mark.parametrize("value", [10**400, [], None, {}], ids=["huge", "list", "none", "object"])
@pytest.mark.parametrize("field", ["method", "selected", "votes", "confidence", "threshold"])
def test_selection_from_dict_refuses_what_has_another_form(plan_2d, field, value) -> None:
    if (field, value) in [("votes", {}), ("confidence", None), ("threshold", None)]:
        return
    selection = select_width(make_table(plan_2d, [CASES[1]["sensitivity"]]))
    with pytest.raises(ValueError, match="no selection|method is|shares"):
        selection_from_dict({**selection_to_dict(selection), field: value}, selection.table)


def test_select_width_among_allowed_ones_keeps_the_rules_own_or_takes_the_next_narrower(
    plan_2d,
) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]] * 2)
    free = select_width(table)
    assert free.max_features == 8
    assert select_width(table, among=(16, 8, 1)) == free
    found = select_width(table, among=(64, 4, 2))
    assert (found.max_features, found.confidence, found.votes) == (4, 0.0, free.votes)
    single = make_table(plan_2d, [CASES[1]["sensitivity"]])
    assert select_width(single, among=(4, 2)).confidence is None


def test_select_width_refuses_to_choose_among_none(plan_2d) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]])
    with pytest.raises(ValueError, match=r"none of the widths \[3\] is in the ladder"):
        select_width(table, among=(3,))


BUDGET = Budget(16, 0.02, 0.001, 90, 0.2, 5.0, {16: 7.5, 8: 4.0})


def test_selection_keeps_its_budget(plan_2d) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]])
    for budget in (BUDGET, Budget(8, 0.0, 0.0, max_gmacs=0.5)):
        selection = replace(select_width(table), budget=budget)
        content = json.loads(json.dumps(selection_to_dict(selection)))
        assert selection_from_dict(content, table) == selection
        assert set(content["budget"]) == set(Budget.__dataclass_fields__)
    assert "budget" not in selection_to_dict(select_width(table))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_gmacs": float("nan")}, "the budget holds numbers that are negative or not finite"),
        ({"max_latency_ms": -1}, "the budget holds numbers that are negative or not finite"),
        ({"latencies_ms": {"8": float("inf")}}, "the budget holds numbers"),
        ({"expected_dice_lost": -0.1}, "the budget holds numbers"),
        ({"searched": 7}, "the budget names a width that is not in the ladder"),
        ({"latencies_ms": {"7": 1.0}}, "the budget names a width that is not in the ladder"),
        ({"max_parameters": 79}, "the selected width 8 does not keep to its own budget"),
        ({"latencies_ms": {}}, "the selected width 8 does not keep to its own budget"),
        ({"searched": None}, "no selection"),
        ({"latencies_ms": []}, "no selection"),
    ],
    ids=lambda item: "-".join(item) if isinstance(item, dict) else "",
)
def test_selection_from_dict_refuses_an_odd_budget(plan_2d, changed, message) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]])
    content = selection_to_dict(replace(select_width(table), budget=BUDGET))
    content["budget"] |= changed
    with pytest.raises(ValueError, match=message):
        selection_from_dict(content, table)
    for name in Budget.__dataclass_fields__:
        short = {key: value for key, value in content["budget"].items() if key != name}
        with pytest.raises(ValueError, match="no selection"):
            selection_from_dict({**content, "budget": short}, table)


def test_with_width_is_another_width_that_no_budget_and_no_race_chose(plan_2d) -> None:
    table = make_table(plan_2d, [CASES[1]["sensitivity"]])
    race = Race(8, 120, 16, True, (RacedWidth(8, 0.8, 0.0, 0.0, 0.0),))
    chosen = replace(select_width(table), budget=BUDGET, votes={8: 0.9, 4: 0.1})
    chosen = replace(chosen, confidence=0.9)
    assert with_width(chosen, chosen.max_features) is chosen
    for width, share in ((4, 0.1), (32, 0.0)):
        other = with_width(chosen, width)
        assert (other.max_features, other.confidence) == (width, share)
        assert (other.budget, other.race, other.votes) == (None, None, chosen.votes)
        assert other.in_place_of == chosen.max_features
        assert with_width(other, chosen.max_features).in_place_of is None
        assert selection_from_dict(selection_to_dict(other), table) == other
    # After a race the votes are the rule's again, and the width is in place of the rule's.
    unlabeled = select_width(table)
    raced = replace(chosen, max_features=16, race=replace(race, searched=8, widths=()))
    other = with_width(raced, 4)
    assert (other.race, other.votes, other.in_place_of) == (None, unlabeled.votes, 8)
    assert other.confidence is None and with_width(raced, 8) == unlabeled
    with pytest.raises(ValueError, match="width 7 is not in the ladder"):
        with_width(chosen, 7)
    for value in (7, [], "x"):
        content = {**selection_to_dict(chosen), "in_place_of": value}
        with pytest.raises(ValueError, match="is not in the ladder|no selection"):
            selection_from_dict(content, table)
