from __future__ import annotations

import math

import pytest

from monai_xtiny.bundle.results import Evaluation

EVALUATION = Evaluation(
    ("a", "b", "c"), ((0.6, None), (0.8, 0.5), (None, None)), ((3.0, None), (None, 2.0), (1.0, 1.0))
)


def test_evaluation_averages_over_the_cases_that_have_the_class() -> None:
    assert EVALUATION.class_dice == pytest.approx((0.7, 0.5))
    assert EVALUATION.mean_dice == pytest.approx(0.6)
    absent = Evaluation(("a",), ((0.6, None),), ((3.0, None),))
    assert math.isnan(absent.class_dice[1]) and absent.mean_dice == pytest.approx(0.6)
    assert EVALUATION.class_hd95 == pytest.approx((2.0, 1.5))
    assert EVALUATION.case_dice[:2] == pytest.approx((0.6, 0.65))
    assert math.isnan(EVALUATION.case_dice[2])
