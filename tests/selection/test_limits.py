from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from monai_xtiny.networks.cost import network_cost
from monai_xtiny.plan.unet_plan import UNetPlan
from monai_xtiny.selection.bayes import unlabeled_belief
from monai_xtiny.selection.choice import select_width
from monai_xtiny.selection.limits import (
    check_budget,
    checked_limits,
    renewed_budget,
    select_within,
)
from monai_xtiny.selection.posterior import expected_dice_lost
from monai_xtiny.selection.rule import Budget
from tests.selection.tables import MEANS, noisy_table

WIDE = {width: 0.35 * mean for width, mean in MEANS.items()}


def meter(
    asked: list[int], milliseconds: dict[int, float] | None = None
) -> Callable[[UNetPlan, int], float]:
    """Latencies by width, a tenth of it by default, and who was measured."""

    def measure(plan: UNetPlan, width: int) -> float:
        asked.append(width)
        return width / 10 if milliseconds is None else milliseconds[width]

    return measure


@pytest.fixture
def table(plan_2d):
    """The rules choose a width above 4; the networks have as many parameters as features."""
    return noisy_table(plan_2d, WIDE, 0.01, dict.fromkeys(WIDE, 8))


@pytest.mark.parametrize("method", ["paper", "alignment", "bayes"])
def test_select_within_no_limits_is_select_width(table, method) -> None:
    asked: list[int] = []
    assert select_within(table, method, measure=meter(asked)) == select_width(table, method)
    assert asked == []


@pytest.mark.parametrize("method", ["alignment", "bayes"])
def test_select_within_changes_nothing_but_the_record_where_the_choice_fits(table, method) -> None:
    free = select_width(table, method)
    found = select_within(table, method, max_parameters=free.max_features, max_gmacs=0.1)
    assert replace(found, budget=None) == free
    assert found.budget is not None and found.budget.searched == free.max_features
    assert found.budget.expected_dice_lost == found.budget.searched_dice_lost


@pytest.mark.parametrize("method", ["alignment", "bayes"])
def test_select_within_takes_the_best_that_fits_and_says_what_it_costs(table, method) -> None:
    free = select_width(table, method)
    assert free.max_features > 4
    found = select_within(table, method, max_parameters=5)
    assert found.max_features == 4
    shares = unlabeled_belief(table).shares(table.widths)
    assert found.budget == Budget(
        free.max_features,
        round(expected_dice_lost(shares, 4), 5),
        round(expected_dice_lost(shares, free.max_features), 5),
        max_parameters=5,
    )
    assert found.budget.expected_dice_lost > found.budget.searched_dice_lost


def test_select_within_knows_the_cost_in_dice_without_alignment(selection) -> None:
    found = select_within(selection.table, max_parameters=200)
    assert found.max_features == 2 and found.budget is not None
    assert found.budget.expected_dice_lost > 0.02


def test_select_within_measures_from_the_choice_down_until_one_fits(table) -> None:
    free = select_width(table, "bayes").max_features
    asked: list[int] = []
    found = select_within(table, "bayes", max_latency_ms=0.25, measure=meter(asked))
    assert asked == [width for width in table.widths if 2 <= width <= free]
    assert found.max_features == 2 and found.budget is not None
    assert found.budget.latencies_ms == {width: width / 10 for width in asked}
    # What another limit excludes is not measured.
    asked.clear()
    select_within(table, "bayes", max_parameters=4, max_latency_ms=9, measure=meter(asked))
    assert asked == [4]


def test_select_within_refuses_a_latency_that_nothing_reaches(table) -> None:
    asked: list[int] = []
    with pytest.raises(
        ValueError,
        match=r"--max_latency_ms is 0\.05, and the narrowest network, width 1, takes 0\.1 ms per",
    ):
        select_within(table, "bayes", max_latency_ms=0.05, measure=meter(asked))
    assert asked[-1] == 1
    with pytest.raises(ValueError, match="nothing measures it: give measure"):
        select_within(table, "bayes", max_latency_ms=0.05)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_parameters": 0.5}, "--max_parameters is 0.5: give a whole number above 0"),
        ({"max_gmacs": 0.01}, "--max_gmacs is 0.01, and the narrowest network, width 1, has 0.1"),
    ],
    ids=["no number", "too small"],
)
def test_select_within_refuses_limits_that_no_width_keeps_to(table, limits, message) -> None:
    with pytest.raises(ValueError, match=message):
        select_within(table, "bayes", **limits)


def test_check_budget_knows_the_narrowest_network_before_a_search(plan_2d) -> None:
    cost = network_cost(plan_2d, 1)
    check_budget(plan_2d)
    check_budget(plan_2d, max_parameters=cost.num_parameters, max_gmacs=cost.gmacs)
    few = cost.num_parameters - 1
    with pytest.raises(
        ValueError,
        match=f"--max_parameters is {few}, and the narrowest network, width 1, has {few + 1} param",
    ):
        check_budget(plan_2d, max_parameters=few)
    with pytest.raises(ValueError, match="narrowest network, width 1, has .* GMACs: give more"):
        check_budget(plan_2d, max_gmacs=cost.gmacs / 2)


@pytest.mark.parametrize("name", ["max_parameters", "max_gmacs", "max_latency_ms"])
@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), True, "many", [1], 10**400 * -1]
)
def test_checked_limits_refuses_what_is_no_number_above_0(name, value) -> None:
    limits = {"max_parameters": None, "max_gmacs": None, "max_latency_ms": None, name: value}
    with pytest.raises(ValueError, match=f"--{name} is .*: give a (whole )?number above 0"):
        checked_limits(**limits)


def test_renewed_budget_believes_what_is_known_now() -> None:
    found = renewed_budget(Budget(16, 0.5, 0.5, max_parameters=7), {16: 0.5, 8: 0.5}, 8)
    assert found == Budget(16, 0.00625, 0.0, max_parameters=7)
