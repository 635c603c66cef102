from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from monai_xtiny.bundle.results import Evaluation, evaluation_from_dict

EVALUATION = Evaluation(
    ("a", "b", "c"), ((0.6, None), (0.8, 0.5), (None, None)), ((3.0, None), (None, 2.0), (1.0, 1.0))
)


def test_evaluation_from_dict_reads_this_and_earlier_versions() -> None:
    full = Evaluation(
        ("a",), ((0.6,),), ((None,),), nsd=((0.5,),), volume=((2.0,),), label_volume=((1.0,),),
        ece=((0.1,),), patients=("p",), nsd_tolerance=2.0, length_unit="pixels",
        volume_unit="pixels",
    )  # fmt: skip
    written = json.loads(json.dumps({**asdict(full), "num_epochs": 3, "summary": {}}))
    assert evaluation_from_dict(written) == full
    earlier = {name: written[name] for name in ("cases", "dice", "hd95")}
    assert evaluation_from_dict(earlier) == Evaluation(full.cases, full.dice, full.hd95)


def test_evaluation_summarizes_what_it_has() -> None:
    found = EVALUATION.summary(["one", "two"])
    assert [item["num_with"] for item in found["classes"]] == [2, 1]
    assert set(found["classes"][0]["measures"]) == {"dice", "hd95"}
    assert found["mean"]["dice"]["mean"] == pytest.approx(EVALUATION.mean_dice)
    assert found["num_patients"] is None and found["nsd_tolerance"] is None


def test_evaluation_averages_over_the_cases_that_have_the_class() -> None:
    assert EVALUATION.class_dice == pytest.approx((0.7, 0.5))
    assert EVALUATION.mean_dice == pytest.approx(0.6)
    absent = Evaluation(("a",), ((0.6, None),), ((3.0, None),))
    assert math.isnan(absent.class_dice[1]) and absent.mean_dice == pytest.approx(0.6)
    assert EVALUATION.class_hd95 == pytest.approx((2.0, 1.5))
    assert EVALUATION.case_dice[:2] == pytest.approx((0.6, 0.65))
    assert math.isnan(EVALUATION.case_dice[2])
