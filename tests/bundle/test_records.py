from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.records import (
    Estimate,
    LearningCurve,
    class_results,
    curve_rows,
    ranked_cases,
    read_held_out,
    read_learning_curve,
    read_speed,
)
from monai_xtiny.bundle.results import Evaluation

SHIPPED = Path(__file__).parents[2] / "bundle" / "nuclei_fluorescence_xtiny_segmentation"
TABLE = "epoch,train_loss,val_mean_dice\r\n1,0.9,\r\n2,0.5,0.6\r\n"
TIMING = {
    "network": "selected", "max_features": 8, "engine": "ONNX Runtime", "num_threads": 1,
    "num_bytes": 2048, "peak_mib": 99.5, "network_ms": 2.0, "network_p95_ms": 3.0,
    "picture_ms": 4.0, "picture_p95_ms": 5.0,
}  # fmt: skip
DEPLOYED = {
    "device": "a CPU", "size": [256, 256], "max_difference": 1e-5, "dice": 0.9, "dice_int8": None,
    "timings": [{**TIMING, "network": "full-width", "network_ms": 30.0}, TIMING],
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """A copy of a shipped bundle, without its weights."""
    copy = tmp_path / SHIPPED.name
    shutil.copytree(SHIPPED, copy, ignore=shutil.ignore_patterns("*.pt", "scripts"))
    return Bundle.open(copy)


def written(bundle: Bundle, name: str, text: str) -> Bundle:
    bundle.path(name).parent.mkdir(exist_ok=True)
    bundle.path(name).write_text(text, encoding="utf-8")
    return bundle


def test_read_learning_curve_takes_the_table_and_else_what_was_evaluated(bundle) -> None:
    assert read_learning_curve(bundle) is None
    curve = LearningCurve((1, 2), (0.9, 0.5), (None, 0.6))
    kept = json.loads(bundle.path("docs/evaluation.json").read_text())
    written(
        bundle, "docs/evaluation.json", json.dumps({**kept, "learning_curve": curve_rows(curve)})
    )
    assert read_learning_curve(bundle) == curve and curve.best == (2, 0.6)
    written(bundle, "eval/learning_curve.csv", TABLE.replace("0.5", "0.4"))
    found = read_learning_curve(bundle)
    assert found is not None and found.losses == (0.9, 0.4)


@pytest.mark.parametrize("bad", ["1,nan,", "1,0.5,inf", "x,0.5,", "1"])
def test_read_learning_curve_refuses_a_damaged_table(bundle, bad) -> None:
    written(bundle, "eval/learning_curve.csv", f"epoch,train_loss,val_mean_dice\n{bad}\n")
    with pytest.raises(ValueError, match=r"learning_curve\.csv' holds no learning curve"):
        read_learning_curve(bundle)


def test_class_results_have_the_interval_of_a_mean_over_cases() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.05, 200)
    rows = tuple((value,) for value in values.tolist())
    evaluation = Evaluation(tuple(map(str, range(200))), rows, ((None,),) * 200)
    (result,) = class_results(evaluation, ["cell"])
    spread = 1.96 * values.std(ddof=1) / np.sqrt(200)
    dice = result.measures["dice"]
    assert dice.mean == pytest.approx(values.mean())
    assert dice.low == pytest.approx(values.mean() - spread, abs=spread / 10)
    assert dice.high == pytest.approx(values.mean() + spread, abs=spread / 10)
    assert result.measures["hd95"] == Estimate(None)
    assert (result.label, result.num_cases, "nsd" in result.measures) == ("cell", 200, False)


def test_class_results_are_those_that_an_evaluation_was_written_with(bundle) -> None:
    evaluation = read_held_out(bundle)
    assert evaluation is not None
    (result,) = class_results(evaluation, bundle.label_names[1:])
    content = json.loads(bundle.path("docs/evaluation.json").read_text())
    (written_with,) = content["summary"]["classes"]
    for name in ("dice", "nsd", "hd95", "relative_volume_error"):
        found = result.measures[name]
        expected = written_with["measures"][name]
        assert (found.mean, found.low) == (expected["mean"], expected["low"])


def test_class_results_of_one_case_have_no_interval() -> None:
    evaluation = Evaluation(("a", "b"), ((0.5,), (None,)), ((1.0,), (2.0,)))
    (result,) = class_results(evaluation, ["cell"])
    assert result.measures["dice"] == Estimate(0.5) and result.case_dice == (0.5,)


@pytest.mark.parametrize(
    "change", [{"dice": [[0.5, 0.5]]}, {"dice": [["0.5"]]}, {"hd95": []}, {"cases": None}]
)
def test_read_held_out_refuses_an_evaluation_of_something_else(bundle, change) -> None:
    content = {"cases": ["a"], "dice": [[0.5]], "hd95": [[1.0]], **change}
    written(bundle, "docs/evaluation.json", json.dumps(content))
    with pytest.raises(ValueError, match="is no evaluation of this bundle"):
        read_held_out(bundle)


def test_ranked_cases_are_best_median_and_worst_of_those_with_a_class() -> None:
    assert ranked_cases([0.1, float("nan"), 0.9, 0.5]) == (2, 3, 0)
    with pytest.raises(ValueError, match="no case has a label"):
        ranked_cases([float("nan")])


def test_read_speed_compares_with_the_full_width_in_the_same_engine(bundle) -> None:
    assert read_speed(bundle) is None
    speed = read_speed(written(bundle, "docs/deploy.json", json.dumps(DEPLOYED)))
    assert speed is not None
    assert [(row.kib, row.image_ms, row.speedup) for row in speed.rows] == [
        (2.0, 4.0, None),
        (2.0, 4.0, 15.0),
    ]


def test_read_speed_knows_weights_that_were_not_exported(bundle) -> None:
    bundle.path("models/model.pt").parent.mkdir(exist_ok=True)
    bundle.path("models/model.pt").write_bytes(b"new")
    for digest, is_own in (
        (hashlib.sha256(b"new").hexdigest(), True),
        (hashlib.sha256(b"old").hexdigest(), False),
        (None, True),  # of an earlier version
    ):
        content = {**DEPLOYED, "weights_file_sha256": digest}
        speed = read_speed(written(bundle, "docs/deploy.json", json.dumps(content)))
        assert speed is not None and speed.is_of_weights is is_own


@pytest.mark.parametrize("damage", [{"timings": [{}]}, {"size": "x"}, {"max_difference": None}])
def test_read_speed_refuses_a_damaged_table(bundle, damage) -> None:
    written(bundle, "docs/deploy.json", json.dumps({**DEPLOYED, **damage}))
    with pytest.raises(ValueError, match=r"deploy\.json' is no table of deploy"):
        read_speed(bundle)
