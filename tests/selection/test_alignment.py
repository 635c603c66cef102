from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.alignment import (
    STABLE,
    alignment_values,
    bootstrap_votes,
    refine_alignment,
    select_alignment,
)
from monai_xtiny.selection.budget import MAX_SEEDS, first_seeds
from monai_xtiny.selection.choice import select_width
from monai_xtiny.selection.rules import refinement, suited_method

WIDTHS = (64, 32, 16, 8, 4, 2, 1)
IMAGES = ("a", "b", "c")


def noisy_table(plan, means, spread: float, counts: dict[int, int], seed: int = 0) -> ScoreTable:
    """Alignments around a mean of each width up to 32; sensitivities of no interest."""
    rng = np.random.default_rng(seed)
    ladder = []
    for width in WIDTHS:
        rows = counts.get(width, 1)
        values = ()
        if width in means:
            noise = rng.normal(0, spread, (rows, 1)) + rng.normal(0, spread / 10, (rows, 3))
            values = tuple(map(tuple, (means[width] + noise).tolist()))
        ladder.append(Rung(width, (width,), width, width, 0.1, ((1.0,) * 3,), values))
    seeds = tuple(range(max(counts.values(), default=1)))
    return ScoreTable(plan, tuple(ladder), (0,), IMAGES, {"total": 5.0}, {}, seeds)


def unit_cost(width: int) -> float:
    return width


MEANS = {32: 0.5, 16: 0.4, 8: 0.3, 4: 0.22, 2: 0.1, 1: 0.05}


@pytest.mark.parametrize(
    ("alignments", "threshold", "expected"),
    [
        ([0.5, 0.4, 0.3, 0.2], 0.25, 8),
        ([0.5, 0.4, 0.3, 0.2], 0.2, 4),
        ([0.5, 0.4, 0.3, 0.2], 0.01, 4),
        ([0.5, 0.1, 0.3, 0.2], 0.2, 32),
        ([0.1, 0.4, 0.3, 0.2], 0.2, 32),
    ],
    ids=["between", "on the threshold", "all above", "a dip ends it", "none above"],
)
def test_select_alignment_takes_the_smallest_width_before_the_first_failure(
    alignments, threshold, expected
) -> None:
    assert select_alignment((32, 16, 8, 4), alignments, threshold=threshold) == expected


@pytest.mark.parametrize("alignments", [[0.5], [], [0.5, float("nan")]])
def test_select_alignment_refuses(alignments) -> None:
    with pytest.raises(ValueError, match="give one finite value each"):
        select_alignment((8, 4), alignments)


def test_alignment_values_refuses_a_table_without(selection) -> None:
    with pytest.raises(ValueError, match="no alignment: score again with --method alignment"):
        alignment_values(selection.table)


def test_bootstrap_votes_sum_to_one_repeat_and_leave_the_generator() -> None:
    rng = np.random.default_rng(0)
    values = {w: rng.normal(MEANS[w], 0.1, (8, 3)) for w in MEANS}
    state = np.random.get_state()[1].copy()
    votes = bootstrap_votes(values, threshold=0.2)
    assert sum(votes.values()) == pytest.approx(1)
    assert votes == bootstrap_votes(values, threshold=0.2)
    assert votes != bootstrap_votes(values, threshold=0.2, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_bootstrap_votes_are_half_for_a_mean_on_the_threshold_and_sure_without_noise() -> None:
    noise = np.linspace(-1, 1, 40)[:, None] * np.ones((1, 3))
    votes = bootstrap_votes({8: 0.9 + 0 * noise, 4: 0.2 + 0.1 * noise}, threshold=0.2)
    assert votes[4] == pytest.approx(0.5, abs=0.06)
    assert bootstrap_votes({8: 0.9 + 0 * noise, 4: 0.1 + 0 * noise}, threshold=0.2) == {8: 1.0}


def test_bootstrap_votes_see_the_noise_of_images_too() -> None:
    of_images = np.ones((40, 1)) * np.linspace(-1, 1, 3)[None]
    votes = bootstrap_votes({8: 0.9 + 0 * of_images, 4: 0.25 + 0.2 * of_images}, threshold=0.2)
    assert 0.1 < votes[8] < 0.45


def test_bootstrap_votes_vary_as_the_mean_of_new_initialisations_does() -> None:
    # Two values 1 from their mean: it has a standard error of 1, and a bootstrap of them as they
    # are one of 0.7, in which a quarter of the resamples lie 1 below it.
    rows = np.asarray([[-1.0], [1.0]])
    wide = np.full((2, 1), 9.0)
    votes = bootstrap_votes({8: wide, 4: rows + 1.2}, threshold=0)
    assert votes[8] == pytest.approx(0.25, abs=0.05)
    # Images in the same way.
    votes = bootstrap_votes({8: wide.T, 4: rows.T + 1.2}, threshold=0)
    assert votes[8] == pytest.approx(0.25, abs=0.05)


def test_bootstrap_votes_of_at_least_95_percent_are_right_as_often() -> None:
    rng = np.random.default_rng(2)
    is_right = []
    for _ in range(600):
        distance = rng.normal(0, 0.02)
        noise = rng.normal(0, 0.06, (16, 1)) + rng.normal(0, 0.04, (1, 8))
        values = {8: np.full((16, 8), 0.9), 4: 0.2 + distance + noise}
        votes = bootstrap_votes(values, threshold=0.2)
        width = max(votes, key=lambda item: votes[item])
        if votes[width] >= STABLE:
            is_right.append(width == (4 if distance >= 0 else 8))
    assert len(is_right) > 100
    assert np.mean(is_right) > 0.9


def test_bootstrap_votes_are_withheld_where_no_width_is_wide_enough() -> None:
    values = {8: np.full((4, 2), 0.1), 4: np.full((4, 2), 0.05)}
    assert bootstrap_votes(values, threshold=0.2) == {}
    half = {8: np.asarray([[0.1], [0.3]]), 4: np.full((2, 1), 0.05)}
    votes = bootstrap_votes(half, threshold=0.2)
    assert list(votes) == [8]
    assert 0.5 < votes[8] < 0.9


def test_bootstrap_votes_refuses_widths_with_other_images() -> None:
    with pytest.raises(ValueError, match="give every width the same images"):
        bootstrap_votes({8: np.ones((2, 3)), 4: np.ones((2, 2))})


def test_more_initialisations_make_the_votes_surer_of_the_right_width() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for count in (4, 32, 256):
        noise = rng.normal(0, 0.1, (50, count, 1)) * np.ones((1, 1, 2))
        votes = [bootstrap_votes({8: 0.9 + 0 * n, 4: 0.22 + n}, threshold=0.2) for n in noise]
        shares.append(np.mean([vote.get(4, 0) for vote in votes]))
    assert shares == sorted(shares)
    assert shares[-1] > 0.95


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


def test_refinement_gives_more_images_no_fewer_initialisations(plan_2d) -> None:
    def wanted(number: int) -> dict[int, int]:
        table = noisy_table(plan_2d, MEANS, 0.01, {})
        ladder = tuple(
            replace(rung, alignment=((0.5,) * number,) if rung.alignment else ())
            for rung in table.ladder
        )
        images = tuple(map(str, range(number)))
        table = replace(table, ladder=ladder, images=images)
        return dict(refinement("alignment", unit_cost=unit_cost)(table))

    assert wanted(8) == wanted(20) == wanted(300)


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


def test_select_width_by_alignment_states_votes_and_confidence(plan_2d) -> None:
    counts = {width: 16 for width in MEANS}
    table = noisy_table(plan_2d, MEANS, 0.05, counts)
    selection = select_width(table, "alignment")
    values = alignment_values(table)
    means = [array.mean() for array in values.values()]
    assert selection.max_features == select_alignment(list(values), means)
    assert selection.confidence == selection.votes[selection.max_features]
    assert suited_method(table) == "alignment"


def test_select_width_by_alignment_of_one_initialisation_states_no_confidence(plan_2d) -> None:
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
    assert suited_method(table) == "alignment"
    bare = tuple(replace(rung, alignment=()) for rung in table.ladder)
    assert suited_method(replace(table, ladder=bare)) == "paper"
    assert select_width(table, "paper").confidence is None
