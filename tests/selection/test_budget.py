from __future__ import annotations

from dataclasses import replace

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.alignment import (
    STABLE,
    alignment_values,
    bootstrap_votes,
    refine_alignment,
)
from monai_xtiny.selection.budget import MAX_SEEDS, first_round, first_seeds
from monai_xtiny.selection.rules import refinement
from tests.selection.tables import MEANS, WIDTHS, noisy_table


def unit_cost(width: int) -> float:
    return width


def of_images(table: ScoreTable, number: int) -> ScoreTable:
    """The same with so many images, and one initialization of each width."""
    ladder = tuple(
        replace(rung, alignment=((0.5,) * number,) if rung.alignment else ())
        for rung in table.ladder
    )
    return replace(table, ladder=ladder, images=tuple(map(str, range(number))))


def test_refinement_starts_with_few_wide_and_many_narrow(plan_2d) -> None:
    refine = refinement("alignment", unit_cost=unit_cost)
    wanted = refine(noisy_table(plan_2d, MEANS, 0.01, {}))
    assert wanted == {width: first_seeds(width) for width in MEANS}
    assert list(wanted.values()) == sorted(wanted.values())


def test_refinement_starts_with_fewer_where_the_budget_is_small(plan_2d) -> None:
    # All the cost is in width 1: 16 of it on 3 images are over a pass of 16 images, 8 are not.
    refine = refinement("alignment", unit_cost=lambda width: float(width == 1))
    wanted = refine(noisy_table(plan_2d, MEANS, 0.01, {}))
    assert wanted == {width: first_seeds(width) // 2 for width in MEANS}


def test_first_round_never_gives_more_than_the_usual_number(plan_2d) -> None:
    usual = {width: first_seeds(width, share=0.25) for width in MEANS}
    table = of_images(noisy_table(plan_2d, MEANS, 0.01, {}), 8)
    assert first_round(table, unit_cost, share=0.25) == usual
    # All the cost is in width 1: 4 of it on 8 images are over a pass of 16 images, 2 are not.
    found = first_round(table, lambda width: float(width == 1), share=0.25)
    assert found == {width: min(count, 2) for width, count in usual.items()}


def test_refinement_gives_more_images_no_fewer_initializations(plan_2d) -> None:
    def wanted(number: int) -> dict[int, int]:
        table = of_images(noisy_table(plan_2d, MEANS, 0.01, {}), number)
        return dict(refinement("alignment", unit_cost=unit_cost)(table))

    assert wanted(8) == wanted(20) == wanted(300)


def test_refinement_asks_for_the_same_whatever_wide_widths_were_scored_on(plan_2d) -> None:
    counts = {width: first_seeds(width) for width in MEANS}
    asked = []
    for num_wide in (3, 1):
        for rows in ({}, counts):
            table = noisy_table(plan_2d, MEANS, 0.2, rows)
            wide = replace(table.ladder[0], sensitivity=((1.0,) * num_wide,))
            table = replace(table, ladder=(wide, *table.ladder[1:]))
            asked.append(refine_alignment(table, unit_cost, threshold=0.21))
    assert asked[:2] == asked[2:]
    assert asked[1]


def test_refinement_asks_for_more_of_the_widest_where_it_may_be_too_narrow(plan_2d) -> None:
    means = {width: value / 2 for width, value in MEANS.items()}
    counts = {**{width: first_seeds(width) for width in means}, 16: 32}
    table = noisy_table(plan_2d, means, 0.02, counts)
    wanted = refine_alignment(table, unit_cost, threshold=0.25)
    assert [width for width in counts if wanted[width] != counts[width]] == [32]
    # And for nothing where that is sure.
    table = noisy_table(plan_2d, means, 0.001, counts)
    assert refine_alignment(table, unit_cost, threshold=0.3) == {}


def test_refinement_stops_when_the_choice_is_sure(plan_2d) -> None:
    counts = {width: first_seeds(width) for width in MEANS}
    table = noisy_table(plan_2d, MEANS, 0.001, counts)
    assert max(bootstrap_votes(alignment_values(table)).values()) >= STABLE
    assert refinement("alignment", unit_cost=unit_cost)(table) == {}


def test_refinement_doubles_a_contested_width_until_the_budget_is_spent(plan_2d) -> None:
    counts = {width: first_seeds(width) for width in MEANS}
    budget = 16 * sum(WIDTHS)
    for _ in range(20):
        table = noisy_table(plan_2d, MEANS, 0.2, counts)
        wanted = refine_alignment(table, unit_cost, threshold=0.21)
        if not wanted:
            break
        changed = [width for width in counts if wanted[width] != counts[width]]
        assert len(changed) == 1
        assert wanted[changed[0]] == min(2 * counts[changed[0]], MAX_SEEDS)
        counts = dict(wanted)
        # Sensitivity once a width; alignment costs half of it.
        spent = 3 * (sum(WIDTHS) + sum(width * count / 3 for width, count in counts.items()))
        assert spent <= budget
    assert not wanted
    assert max(counts.values()) > first_seeds(1)


def test_refinement_asks_for_nothing_after_max_seconds_or_for_given_seeds(plan_2d) -> None:
    counts = {width: first_seeds(width) for width in MEANS}
    table = noisy_table(plan_2d, MEANS, 0.2, counts)
    assert refinement("alignment", unit_cost=unit_cost, max_seconds=5.1)(table)
    assert refinement("alignment", unit_cost=unit_cost, max_seconds=5.0)(table) == {}
    bare = noisy_table(plan_2d, MEANS, 0.2, {})
    assert refinement("alignment", unit_cost=unit_cost, max_seconds=5.0)(bare) == {}
    assert refinement("alignment", unit_cost=unit_cost, num_seeds=3) is None
    assert refinement("paper", unit_cost=unit_cost) is None
