from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from monai_xtiny.scores.diversity import rank_diverse


def slow_order(weights: np.ndarray, features: np.ndarray) -> list[int]:
    """The order by its definition."""
    points = (features - features.mean(0)) / features.std(0)
    count = len(points)
    distance = np.array([[np.linalg.norm(a - b) for b in points] for a in points])
    usual = np.median([distance[i, j] for i in range(count) for j in range(i)])
    order = [int(weights.argmax())]
    while len(order) < count:
        left = [i for i in range(count) if i not in order]
        gains = [weights[i] * min(1, *(distance[i, j] / usual for j in order)) for i in left]
        order.append(left[int(np.argmax(gains))])
    return order


@pytest.fixture
def cases() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.random(30), generator.normal(size=(30, 5)) * (1, 10, 100, 1, 1)


def test_rank_diverse_is_weighted_k_center(cases) -> None:
    found = rank_diverse(*cases)
    assert [item.index for item in found] == slow_order(*cases)
    assert found[0].score == cases[0].max()
    assert all(one.score >= other.score for one, other in pairwise(found))


def test_rank_diverse_does_not_follow_the_scale_of_a_feature(cases) -> None:
    weights, features = cases
    other = rank_diverse(weights, features * (7, 0.1, 3, 1, 1) + 5)
    assert [item.index for item in other] == [item.index for item in rank_diverse(*cases)]


def test_rank_diverse_picks_one_of_several_duplicates(cases) -> None:
    weights, features = cases
    worst = int(weights.argmax())
    copies = np.repeat(features[[worst]], 9, axis=0) + 1e-6
    found = rank_diverse(
        np.concatenate([weights, np.full(9, weights.max() - 1e-3)]),
        np.concatenate([features, copies]),
    )
    alike = {worst, *range(30, 39)}
    assert [item.index in alike for item in found[:20]] == [True] + [False] * 19


def test_rank_diverse_of_cases_that_are_all_alike_follows_uncertainty() -> None:
    found = rank_diverse(np.array([0.1, 0.3, 0.2, 0.3]), np.ones((4, 2)))
    assert [item.index for item in found] == [1, 3, 2, 0]
    assert [item.score for item in found] == [0.3, 0, 0, 0]


def test_rank_diverse_does_not_see_the_rounding_of_a_feature_that_is_equal(cases) -> None:
    weights, features = cases
    noise = 1e-7 * np.random.default_rng(1).normal(size=(30, 4))
    found = rank_diverse(weights, np.concatenate([features, 5 * (1 + noise)], axis=1))
    expected = rank_diverse(*cases)
    assert [item.index for item in found] == [item.index for item in expected]
    assert [item.score for item in found] == pytest.approx([item.score for item in expected])


def test_rank_diverse_of_no_case_is_empty() -> None:
    assert rank_diverse(np.zeros(0), np.zeros((0, 3))) == ()


def test_rank_diverse_refuses_what_is_no_number(cases) -> None:
    weights, features = cases
    for wrong in (-weights, weights * np.nan):
        with pytest.raises(ValueError, match="must be finite"):
            rank_diverse(wrong, features)
