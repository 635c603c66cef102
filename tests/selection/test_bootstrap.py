from __future__ import annotations

import numpy as np
import pytest

from monai_xtiny.selection.bootstrap import draw_counts, inflate_deviations


def test_draw_counts_are_those_of_draws_with_replacement() -> None:
    counts = draw_counts(np.random.default_rng(0), 4, 20_000)
    assert counts.shape == (20_000, 4)
    assert (counts.sum(axis=1) == 4).all()
    # Of a binomial of 4 draws with p = 1/4.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.02)
    np.testing.assert_allclose(counts.var(axis=0), 0.75, atol=0.02)


def test_inflate_deviations_gives_a_bootstrap_the_unbiased_variance_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 5)
    counts = draw_counts(np.random.default_rng(0), 5, 100_000)
    means = counts @ inflate_deviations(values, 0) / 5
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.02)


def test_inflate_deviations_over_an_axis_moves_its_means_alone() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3))
    moved = inflate_deviations(values, 0, over=1)
    rows = values.mean(axis=1)
    np.testing.assert_allclose(
        moved.mean(axis=1), rows.mean() + np.sqrt(4 / 3) * (rows - rows.mean())
    )
    # Columns and what is left of rows and columns stay.
    np.testing.assert_allclose(moved.mean(axis=0), values.mean(axis=0))
    inner = [item - item.mean(axis=1, keepdims=True) for item in (values, moved)]
    np.testing.assert_allclose(*inner)


def test_inflate_deviations_leaves_a_single_one_its_input_and_missing_values() -> None:
    values = np.array([[0.5, np.nan, 0.7]])
    np.testing.assert_array_equal(inflate_deviations(values, 0), values)
    two = np.array([[0.5, np.nan], [0.7, np.nan]])
    moved = inflate_deviations(two, 0)
    assert np.isnan(moved[:, 1]).all()
    assert moved[:, 0].mean() == pytest.approx(0.6)
    np.testing.assert_array_equal(two[:, 0], [0.5, 0.7])
