from __future__ import annotations

import numpy as np
import pytest

from monai_xtiny.selection.alignment import (
    STABLE,
    alignment_values,
    bootstrap_votes,
    select_alignment,
)
from tests.selection.tables import MEANS


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


def test_bootstrap_votes_vary_as_the_mean_of_new_initializations_does() -> None:
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


def test_more_initializations_make_the_votes_surer_of_the_right_width() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for count in (4, 32, 256):
        noise = rng.normal(0, 0.1, (50, count, 1)) * np.ones((1, 1, 2))
        votes = [bootstrap_votes({8: 0.9 + 0 * n, 4: 0.22 + n}, threshold=0.2) for n in noise]
        shares.append(np.mean([vote.get(4, 0) for vote in votes]))
    assert shares == sorted(shares)
    assert shares[-1] > 0.95
