from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import bootstrap

from monai_xtiny.bundled.summaries import (
    bootstrap_means,
    summarize,
    summary_notes,
    summary_rows,
    summary_table,
)

NAN = np.nan
DICE = np.random.default_rng(0).beta(18, 2, size=(30, 1))
NAMES = [f"case{number:02}" for number in range(30)]
# Two classes: found, missed; found, lacking in the label; wrongly found where it is not.
CASES = ["a", "b", "c"]
VALUES = {
    "dice": [[0.9, 0.0], [0.8, NAN], [0.7, NAN]],
    "nsd": [[1.0, 0.0], [0.5, NAN], [0.6, NAN]],
    "hd95": [[1.0, NAN], [2.0, NAN], [3.0, NAN]],
    "volume": [[11.0, 0.0], [9.0, 0.0], [20.0, 4.0]],
    "label_volume": [[10.0, 5.0], [10.0, 0.0], [10.0, 0.0]],
    "ece": [[0.01, 0.02], [0.01, 0.02], [0.04, 0.02]],
}


def summary(**options):
    return summarize(CASES, VALUES, class_names=["one", "two"], nsd_tolerance=2.0, **options)


def test_bootstrap_means_gives_scipys_percentile_interval() -> None:
    expected = bootstrap(
        (DICE[:, 0],), np.mean, method="percentile", n_resamples=20000, random_state=0
    ).confidence_interval
    found = np.quantile(bootstrap_means(DICE, NAMES, num_draws=20000), [0.025, 0.975])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_bootstrap_means_draws_patients_with_all_their_cases() -> None:
    twice, patients = np.concatenate([DICE, DICE]), NAMES * 2
    grouped = bootstrap_means(twice, patients)
    np.testing.assert_allclose(grouped, bootstrap_means(DICE, NAMES))
    alone = bootstrap_means(twice, [f"{index:02}" for index in range(60)])
    assert alone.std() == pytest.approx(grouped.std() / np.sqrt(2), rel=0.1)


def test_bootstrap_means_leaves_out_what_is_not_defined() -> None:
    values = np.array([[1.0, NAN], [3.0, NAN], [NAN, 5.0]])
    found = bootstrap_means(values, CASES)
    assert np.nanmin(found[:, 0]) == 1 and np.nanmax(found[:, 0]) == 3
    assert set(found[np.isfinite(found[:, 1]), 1]) == {5.0}
    np.testing.assert_array_equal(found, bootstrap_means(values, CASES))


def test_summarize_counts_a_class_where_the_label_has_it() -> None:
    one, two = summary()["classes"]
    assert {name: item["mean"] for name, item in one["measures"].items()} == {
        "dice": 0.8, "nsd": 0.7, "hd95": 2.0, "ece": 0.02, "volume_error": 3.33333,
        "relative_volume_error": 33.3333, "absolute_volume_error": 40.0,
    }  # fmt: skip
    assert [item["num_cases"] for item in one["measures"].values()] == [3] * 7
    assert {name: item["num_cases"] for name, item in two["measures"].items()} == {
        "dice": 1, "nsd": 1, "hd95": 0, "ece": 3, "volume_error": 1, "relative_volume_error": 1,
        "absolute_volume_error": 1,
    }  # fmt: skip
    assert two["measures"]["hd95"]["mean"] is None
    assert two["measures"]["volume_error"]["mean"] == -5
    assert (two["num_with"], two["missed"], two["num_without"], two["false"]) == (
        1,
        ["a"],
        2,
        ["c"],
    )
    assert one["num_missed"] == one["num_false"] == 0


def test_summarize_names_the_worst_cases_and_averages_over_classes() -> None:
    found = summary()
    assert [case["case"] for case in found["classes"][0]["worst"]] == ["c", "b", "a"]
    assert found["classes"][1]["worst"] == [{"case": "a", "dice": 0.0}]
    assert [case["case"] for case in found["worst"]] == ["a", "c", "b"]
    mean = found["mean"]["dice"]
    assert mean["mean"] == pytest.approx((0.8 + 0) / 2) and mean["low"] < mean["high"]
    assert "volume_error" not in found["mean"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_summarize_gives_intervals_to_two_patients_or_more() -> None:
    dice = summary()["classes"][0]["measures"]["dice"]
    assert dice["low"] < 0.8 < dice["high"]
    assert summary()["classes"][1]["measures"]["dice"]["low"] is None
    found = summary(patients=["p", "p", "p"])
    assert found["num_patients"] == 1
    assert found["classes"][0]["measures"]["dice"]["low"] is None


def test_summary_table_says_what_the_numbers_are_of() -> None:
    text = summary_table(summary(length_unit="mm", volume_unit="ml"))
    rows = summary_rows(summary())
    assert rows[0][:5] == ["class", "cases", "Dice", "NSD (2 mm)", "HD95, mm"]
    assert [row[:2] for row in rows[1:]] == [["one", "3"], ["two", "1"], ["mean", "3"]]
    assert rows[2][2:5] == ["0.000", "0.000", "n/a"] and rows[3][5:8] == ["", "", ""]
    for words in (
        "two: not found in 1 of 1 cases that have it: a",
        "two: found in 1 of 2 cases that lack it: c",
        "lowest Dice of one: c 0.700, b 0.800, a 0.900",
        "lowest mean Dice: a 0.450, c 0.700, b 0.800",
    ):
        assert words in text.splitlines()


@pytest.mark.parametrize(
    ("scale", "text"),
    [(1, "3 (-1 to 10)"), (100, "333 (-100 to 1000)"), (0.01, "0.03 (-0.01 to 0.10)")],
)
def test_summary_rows_give_the_largest_volume_two_digits(scale, text) -> None:
    volumes = {name: scale * np.array(VALUES[name]) for name in ("volume", "label_volume")}
    found = summarize(CASES, {**VALUES, **volumes}, class_names=["one", "two"], nsd_tolerance=1)
    column = summary_rows(found)[0].index("volume error, ml")
    assert summary_rows(found)[1][column] == text


def test_summarize_of_cases_without_any_class_has_no_numbers() -> None:
    found = summarize(["a", "b"], {"dice": [[NAN], [NAN]]}, class_names=["one"])
    assert found["classes"][0]["measures"]["dice"] == {
        "mean": None, "low": None, "high": None, "num_cases": 0,
    }  # fmt: skip
    assert found["mean"]["dice"]["mean"] is None and found["worst"] == []
    assert summary_rows(found)[1] == ["one", "0", "n/a"] and summary_notes(found) == []


def test_summarize_refuses_values_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"dice is of shape \(2, 1\): \(3, 1\) \(cases, classes\)"):
        summarize(CASES, {"dice": [[0.5], [0.5]]}, class_names=["one"])
