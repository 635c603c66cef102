from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monai_xtiny.selection.posterior import Belief

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from report_race import (  # noqa: E402
    RACED,
    Fit,
    Task,
    kinds_of,
    lagging,
    outcome,
    race_error,
    recorded,
    refuse_seen,
    some_cases,
    stopped_table,
    verified,
    verified_picks,
    verified_table,
)  # fmt: skip
from report_selection import Truth  # noqa: E402

SIZES = {width: width**2 for width in RACED}


def task_of(brief: dict[tuple[int, int], dict[int, float]]) -> Task:
    """A task that needs width 16, with brief trainings of four cases each."""
    truth = Truth({32: 0.9, 16: 0.895, 8: 0.8, 4: 0.7}, dict.fromkeys(RACED, 0.0), SIZES, SIZES)
    arrays = {
        key: {width: np.full((1, 4, 1), value) for width, value in dice.items()}
        for key, dice in brief.items()
    }
    return Task(truth, 0.0, [3.0], [], arrays)


FLAT = dict.fromkeys(RACED, 0.8)
STEEP = {32: 0.9, 16: 0.8, 8: 0.7, 4: 0.6}


def test_races_of_some_seeds_are_all_their_combinations() -> None:
    task = task_of({(120, 0): FLAT, (120, 1): STEEP, (120, 2): STEEP, (60, 0): FLAT})
    assert task.kinds == [(60, 1), (120, 1), (120, 2), (120, 3)]
    single, pairs = task.races((120, 1)), task.races((120, 2))
    assert [race[32][:, 0, 0].tolist() for race in single] == [[0.8], [0.9], [0.9]]
    assert [race[32][:, 0, 0].tolist() for race in pairs] == [[0.8, 0.9], [0.8, 0.9], [0.9, 0.9]]
    assert [race[4].shape for race in pairs] == [(2, 4, 1)] * 3
    assert [race[4].shape for race in task.races((120, 3))] == [(3, 4, 1)]


def test_only_kinds_that_enough_tasks_have_are_judged() -> None:
    tasks = [task_of({(120, 0): FLAT, (120, 1): FLAT}), task_of({(120, 0): FLAT})]
    assert kinds_of(tasks) == [(120, 1), (120, 2)]
    assert kinds_of(tasks, least=2) == [(120, 1)]


def test_lagging_counts_trainings_far_below_the_best_of_their_race() -> None:
    slow = {**STEEP, 4: 0.5}
    said = lagging({"a": task_of({(120, 0): slow, (120, 1): STEEP, (60, 0): slow})})
    assert "2 trainings of 1 tasks" in said and said.endswith("behind by 0.200 (a).")
    assert "0 trainings of 0 tasks" in lagging({"a": task_of({(120, 0): FLAT})})


def test_race_error_is_in_steps_from_the_oracle_and_never_too_small() -> None:
    assert race_error([task_of({(120, 0): FLAT})], (120, 1)) == pytest.approx(2)  # 4 for 16
    assert race_error([task_of({(120, 0): STEEP})], (120, 1)) == pytest.approx(1)  # 32 for 16
    right = {32: 0.81, 16: 0.8, 8: 0.7, 4: 0.6}
    assert race_error([task_of({(120, 0): right})], (120, 1)) == 0.4


def test_verify_is_judged_by_its_own_race_of_recorded_trainings() -> None:
    steep = {32: 0.9, 16: 0.895, 8: 0.8, 4: 0.7, 2: 0.5}
    task = task_of({(120, 0): steep, (120, 1): steep, (120, 2): FLAT})
    fitted = Fit(3.4, 0.7, 1.4, (0.0, 1.5), {(120, 1): 0.5, (120, 2): 0.5}, Belief(3.4, 1.6))
    # One training of each leaves more to what was known before than two do.
    assert verified_picks(task, fitted, (120, 1)) == [16, 16, 8]
    stopped = verified(task, fitted, (120, 2), most=3)[0]
    assert len(stopped.trainings) == 3 and not stopped.is_decided
    table = stopped_table({"fluorescence": task}, {"fluorescence": fitted}, (120, 2))
    assert [row.split(" | ")[0] for row in table[2:4]] == ["| 1", "| 2"]
    assert verified_picks(task, fitted, (120, 2))[0] == 16  # of seeds 0 and 1
    assert recorded(task, 8, 1, 120).evaluation.dice == ((0.8,),) * 4
    # Width 2 has been trained with all seeds of the first pair alone.
    narrow = {**dict.fromkeys((32, 16, 8, 4), 0.8), 2: 0.799}
    task = task_of({(120, 0): narrow, (120, 1): narrow})
    (found,) = verified(task, fitted, (120, 2))
    # It leads, and counts as stopped, since width 1 has not been trained.
    assert 2 in found.widths and (found.recommended, found.is_decided) == (4, False)


def test_outcome_has_the_regret_of_both_sides() -> None:
    task = task_of({(120, 0): FLAT})  # needs 16
    assert outcome(task, 16) == pytest.approx((0, True, 0.005, 0))
    assert outcome(task, 64) == pytest.approx((2, False, 0, 0.02))
    assert outcome(task, 4) == pytest.approx((2, False, 0.2, 0.19))


def test_journals_with_a_test_case_in_a_race_are_refused(tmp_path) -> None:
    for name, cases in (("selection", ["a", "b"]), ("race", ["c", "b"])):
        line = json.dumps({"task": "x", "evaluation": {"cases": cases}})
        (tmp_path / f"{name}.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="x: b is of the oracle's test cases"):
        refuse_seen(tmp_path)
    (tmp_path / "race.jsonl").write_text(line.replace('"b"', '"d"') + "\n")
    refuse_seen(tmp_path)


def test_verified_table_counts_what_is_decided_and_right() -> None:
    steep = {32: 0.9, 16: 0.895, 8: 0.8, 4: 0.7, 2: 0.5}
    task = task_of({(120, 0): steep, (120, 1): steep})
    fitted = Fit(3.4, 0.7, 1.4, (0.0, 1.5), {(120, 2): 0.5}, Belief(3.4, 1.6))
    assert not verified(task, fitted, (120, 2))[0].is_decided  # by four cases
    assert verified_table({"a": task}, {"a": fitted}, (120, 2))[-1].endswith("| 1 | 0 | 0 | 0 |")
    task = replace(task, brief={k: {w: d.repeat(3, 1) for w, d in v.items()}
                                for k, v in task.brief.items()})  # fmt: skip
    assert verified(task, fitted, (120, 2))[0].is_decided
    assert verified_table({"a": task}, {"a": fitted}, (120, 2))[-1].endswith("| 1 | 1 | 1 | 1 |")


def test_some_cases_goes_on_until_two_have_a_class() -> None:
    dice = np.array([[[np.nan], [0.5], [np.nan], [0.7]]])
    assert some_cases({8: dice}, 2)[8].shape == (1, 4, 1)
    assert some_cases({8: np.full((1, 4, 1), 0.5)}, 2)[8].shape == (1, 2, 1)
