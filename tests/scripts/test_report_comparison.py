from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from report_comparison import case_means, difference, interval, report  # noqa: E402


def line(network: str, dice: list[float], *, seed: int = 0, updates: int = 100, **other) -> dict:
    return {
        "task": "cardiac", "network": network, "seed": seed, "updates": updates,
        "num_updates": updates + 4, "learning_rate": 0.01, "whole": False, "images": "2 crops",
        "pick": 8,
        "num_parameters": 1000 * len(network), "gmacs": 1.0, "device": "CPU", "curve": [],
        "cases": [f"c{i}" for i in range(len(dice))],
        "patients": ["a", "a", "b", "b", "c", "d"][: len(dice)], "dice": [[v] for v in dice],
        "nsd": [[v] for v in dice], "hd95": [[None], *([1.0] for _ in dice[1:])], "instances": [],
        **other,
    }  # fmt: skip


def test_interval_draws_patients_not_cases() -> None:
    # Two cases of each patient are equal: as cases they would be twice the evidence.
    values = np.repeat(np.random.default_rng(0).normal(size=30), 2)
    patients = [str(index // 2) for index in range(60)]
    mean, low, high = interval(values, patients)
    _, low_cases, high_cases = interval(values, [str(index) for index in range(60)])
    assert mean == pytest.approx(values.mean())
    assert (high - low) / (high_cases - low_cases) == pytest.approx(2**0.5, rel=0.05)
    # The width that the standard error gives.
    assert high - low == pytest.approx(2 * 1.96 * values[::2].std() / 30**0.5, rel=0.05)


def test_case_means_is_over_classes_then_seeds() -> None:
    lines = [
        {**line("full", [0.2]), "dice": [[0.2, None]]},
        {**line("full", [0.2], seed=1), "dice": [[0.4, 0.8]]},
    ]
    assert case_means(lines, "dice") == pytest.approx([0.4])


def test_difference_refuses_other_cases() -> None:
    with pytest.raises(ValueError, match="other cases were held out of cardiac"):
        difference([line("full", [0.5])], [line("unext", [0.5], cases=["x"])])


def test_report_says_where_the_claim_holds() -> None:
    pick = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]
    worse = [value - 0.05 for value in pick]
    lines = [
        line("full", [value + 0.001 for value in pick]),
        line("width_8", pick),
        line("unext", worse),
        line("width_32", [value + 0.03 for value in pick]),
        line("full", [value - 0.001 for value in pick], updates=50),
    ]
    latency = {
        "task": "cardiac", "network": "unext", "size": [256, 256], "ms": 12.34, "threads": 1,
        "date": "2026-11-26", "processor": "x",
    }  # fmt: skip
    text = "\n".join(report(lines, [latency]))
    row = next(part for part in text.splitlines() if part.startswith("| cardiac | 8 |"))
    assert "| -0.0010 [-0.0010, -0.0010] (104): not worse |" in row
    assert "| +0.0020 [+0.0020, +0.0020] (to 104): no longer gains |" in row
    assert row.endswith("| 104 | UNeXt | width 32 | - |")
    assert "| UNeXt | 5,000 | 1 | 12.3 |" in text and "(1 without)" in text
    assert "| **width 8, the pick** |" in text
    assert "100 updates of 2 crops, learning rate 0.01 (104 updates in whole epochs)" in text
    assert "Other settings" not in text


def test_report_follows_the_longest_training_of_the_full_width() -> None:
    lines = [
        *(line(name, [0.80, 0.82]) for name in ("full", "width_8", "unext")),
        line("full", [0.70, 0.72], updates=60),
        line("full", [0.84, 0.86], updates=200),
        line("width_8", [0.81, 0.83], updates=200),
        line("full", [0.78, 0.80], learning_rate=0.001),
    ]
    text = "\n".join(report(lines, []))
    # Most networks have 100 updates, but the full width was trained longer.
    assert "-0.0300 [-0.0300, -0.0300] (204): worse | +0.0400" in text
    assert "(to 204): gains | 104 | - | - | UNeXt |" in text
    rows = [part for part in text.splitlines() if part.startswith("| cardiac |")]
    # 60 updates are more than half of 100, so those have no gain.
    assert rows[1] == "| cardiac | 64 | 0.7100 | - | - | - | - |"
    assert rows[2].endswith("| +0.0000 [+0.0000, +0.0000] | - | - |")
    assert rows[3].startswith("| cardiac | 204 | 0.8500 | 0.8200 | -0.0300 ")
    assert "| +0.0400 [+0.0400, +0.0400] | +0.0100 [+0.0100, +0.0100] |" in rows[3]
    assert rows[4].startswith(
        "| cardiac | full width | 100 updates of 2 crops, learning rate 0.001"
    )


def test_report_compares_objects_case_by_case() -> None:
    lines = [
        line("width_8", [0.9, 0.9], instances=[[2, 0, 0, 1.6], [1, 1, 1, 0.8]]),
        line("unext", [0.9, 0.9], instances=[[1, 0, 2, 0.9], [1, 1, 1, 0.8]]),
    ]
    text = "\n".join(report(lines, []))
    row = next(part for part in text.splitlines() if part.startswith("| UNeXt |"))
    # F1 of 1 and 0.5 against 0.5 and 0.5; both cases are of one patient.
    assert row.endswith("| +0.0000 [+0.0000, +0.0000] | +0.250 [+0.250, +0.250] |")
    without_pick = "\n".join(report(lines[1:], []))
    assert "| UNeXt | 5,000 |" in without_pick and without_pick.endswith("| - | - |")
