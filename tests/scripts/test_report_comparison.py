from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

from report_comparison import (  # noqa: E402
    HD95,
    case_means,
    difference,
    interval,
    paired,
    report,
)


def line(network: str, dice: list[float], *, seed: int = 0, updates: int = 100, **other) -> dict:
    return {
        "task": "cardiac", "network": network, "seed": seed, "updates": updates,
        "num_updates": updates + 4, "learning_rate": 0.01, "whole": False, "bfloat16": False,
        "images": "2 crops", "pick": 8,
        "num_parameters": 1000 * len(network), "gmacs": 1.0, "device": "CPU", "curve": [],
        "cases": [f"c{i}" for i in range(len(dice))],
        "patients": ["a", "a", "b", "b", "c", "d"][: len(dice)], "dice": [[v] for v in dice],
        "nsd": [[v] for v in dice], "hd95": [[None], *([1.0] for _ in dice[1:])], "instances": [],
        **other,
    }  # fmt: skip


def rows_of(text: str, start: str) -> list[str]:
    return [row for row in text.splitlines() if row.startswith(start)]


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
    assert case_means(lines) == pytest.approx([0.4])


def test_case_means_has_no_distance_where_the_prediction_lacks_a_class() -> None:
    # Of the second case the label lacks the class, so that the other one alone counts.
    dice = [[0.5, 0.0], [0.5, None], [0.5, 0.5]]
    found = {**line("full", [0.5] * 3, hd95=[[2.0, None], [2.0, None], [2.0, 4.0]]), "dice": dice}
    assert case_means([found], HD95) == pytest.approx([np.nan, 2.0, 3.0], nan_ok=True)


def test_measure_has_no_infinite_distances() -> None:
    infinite = line("full", [0.5, 0.5], hd95=[[float("inf")], [3.0]])
    assert HD95.values(infinite) == pytest.approx([np.nan, 3.0], nan_ok=True)


def test_paired_is_of_common_seeds() -> None:
    pick = [line("width_8", [dice, dice], seed=seed) for seed, dice in enumerate((0.9, 0.5, 0.1))]
    others = [line("unext", [0.8, 0.7], seed=seed) for seed in (5, 0)]
    # Means of all seeds would give -0.3 and -0.2.
    assert paired(pick, others) == pytest.approx([0.1, 0.2])
    assert np.isnan(paired(pick, others[:1])).all()
    assert np.isnan(difference(pick, others[:1])).all()


def test_paired_leaves_out_cases_that_either_network_has_no_distance_of() -> None:
    pick = [
        line("width_8", [0.5] * 4, hd95=[[None], [5.0], [5.0], [None]]),
        line("width_8", [0.5] * 4, hd95=[[7.0], [9.0], [5.0], [1.0]], seed=1),
    ]
    others = [
        line("unext", [0.5] * 4, hd95=[[2.0], [2.0], [None], [2.0]]),
        line("unext", [0.5] * 4, hd95=[[4.0], [2.0], [None], [None]], seed=1),
    ]
    # Of the first case only seed 1 counts, for both networks alike.
    assert paired(pick, others, HD95) == pytest.approx([3.0, 5.0, np.nan, np.nan], nan_ok=True)


def test_difference_refuses_other_cases() -> None:
    with pytest.raises(ValueError, match="other cases were held out of cardiac"):
        difference([line("full", [0.5])], [line("unext", [0.5], cases=["x"])])
    seeds = [line("unext", [0.5]), line("unext", [0.5], cases=["x"], seed=1)]
    with pytest.raises(ValueError, match="other cases were held out of cardiac"):
        difference([line("full", [0.5])], seeds)


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
    assert "100 updates of 2 crops, learning rate 0.01, CPU (104 updates in whole epochs)" in text
    assert "Other settings" not in text


def test_report_follows_the_longest_training_of_the_full_width() -> None:
    lines = [
        *(line(name, [0.80, 0.82]) for name in ("full", "width_8", "unext")),
        line("full", [0.70, 0.72], updates=60),
        line("full", [0.84, 0.86], updates=200),
        line("width_8", [0.81, 0.83], updates=200),
        line("full", [0.78, 0.80], learning_rate=0.001),
        line("unext", [0.78, 0.80], learning_rate=0.001),
    ]
    text = "\n".join(report(lines, []))
    # Most networks have 100 updates, but the full width was trained longer.
    assert "-0.0300 [-0.0300, -0.0300] (204): worse | +0.0400" in text
    assert "(to 204): gains | 104 | - | - | UNeXt |" in text
    _, *means, _, short, long, rate, other_rate = rows_of(text, "| cardiac |")
    # 60 updates are more than half of 100, so those have no gain.
    assert means[0].startswith("| cardiac | 64 | 0 / - | 0.7100 / - |")
    assert all(row.endswith("| - | - |") for row in means[:2])
    assert means[2].startswith("| cardiac | 204 | 0 / 0 | 0.8500 / 0.8200 | 0.8500 / 0.8200 |")
    assert means[2].endswith("| +0.0400 [+0.0400, +0.0400] | +0.0100 [+0.0100, +0.0100] |")
    assert short.startswith("| cardiac | 104 | 0 | +0.0000 [+0.0000, +0.0000] |")
    assert long.startswith("| cardiac | 204 | 0 | **-0.0300 [-0.0300, -0.0300]** |")
    # At its worse rate it counts in no verdict.
    assert rate.startswith("| cardiac | full width | 0.001 | 104 | 0.7900 [0.7900, 0.7900] |")
    assert rate.endswith("| **-0.0200 [-0.0200, -0.0200]** | - |")
    assert other_rate.startswith("| cardiac | UNeXt | 0.001 | 104 | 0.7900 [0.7900, 0.7900] |")
    assert "0.01 / 0.01" not in text and "Other settings" not in text


def test_report_takes_each_network_at_the_rate_that_suits_it() -> None:
    low = {"learning_rate": 0.001, "bfloat16": True}
    lines = [line(name, [0.80, 0.82]) for name in ("full", "width_8", "unext")]
    lines += [line("full", [0.88, 0.90], updates=400), line("width_8", [0.85, 0.87], updates=200)]
    lines += [line("full", [0.83, 0.85], **low), line("full", [0.89, 0.91], updates=200, **low)]
    lines += [line("width_8", [0.79, 0.81], **low), line("full", [0.6, 0.6], updates=200)]
    text = "\n".join(report(lines, []))
    verdict = rows_of(text, "| cardiac | 8 |")[0]
    # Longer at its worse rate, which tells nothing of the better one.
    assert "-0.0400 [-0.0400, -0.0400] (204, rate 0.01 / 0.001): worse" in verdict
    assert "| +0.0600 [+0.0600, +0.0600] (to 204, rate 0.001): gains |" in verdict
    short, long = rows_of(text, "| cardiac | full width | 0.001 |")
    assert short.startswith("| cardiac | full width | 0.001 | 104 b | 0.8400 ")
    assert short.endswith("| **+0.0300 [+0.0300, +0.0300]** | - |")
    assert long.endswith("| +0.0600 [+0.0600, +0.0600] |")
    (pick,) = rows_of(text, "| cardiac | **width 8, the pick** | 0.001 |")
    assert pick.endswith("| **-0.0100 [-0.0100, -0.0100]** | - |")
    assert rows_of(text, "| cardiac | full width | 104 | 0.01 / 0.001 | **-0.0300 [")
    assert rows_of(text, "| cardiac | full width | 204 | 0.01 / 0.001 | **-0.0400 [")
    assert "Other settings" not in text


def test_report_does_not_double_across_learning_rates() -> None:
    lines = [line("width_8", [0.80, 0.82]), line("full", [0.80, 0.82])]
    lines += [line("full", [0.84, 0.86], learning_rate=0.001)]
    lines += [line("full", [0.60, 0.62], updates=50)]
    verdict = rows_of("\n".join(report(lines, [])), "| cardiac | 8 |")[0]
    assert "(104, rate 0.01 / 0.001): worse | not measured |" in verdict


def test_report_takes_light_networks_at_the_rate_that_suits_them_too() -> None:
    low = {"learning_rate": 0.001, "bfloat16": True}
    names = ("full", "width_8", "unext", "tinyunet", "cmunext_s", "width_4")
    lines = [line(name, [0.80, 0.82]) for name in names]
    # The pick has 0.003 for 200 updates alone, which takes no training of 100 from it.
    lines += [line("width_8", [0.86, 0.88], learning_rate=0.003, updates=200)]
    lines += [line("width_8", [0.84, 0.86], updates=200), line("width_8", [0.70, 0.70], **low)]
    lines += [line("width_8", [0.83, 0.83], updates=200, **low)]
    lines += [line("unext", [0.82, 0.84], **low), line("tinyunet", [0.60, 0.62], **low)]
    lines += [line("cmunext_s", [0.81, 0.81], **low), line("cmunext_s", [0.9, 0.9], updates=200)]
    lines += [line("cmunext_s", [0.85, 0.86], updates=200, **low)]
    # Trained at another rate for another length alone.
    lines += [line("width_4", [0.90, 0.93], updates=200, learning_rate=0.003)]
    lines += [line("full", [0.90, 0.93], updates=200)]
    text = "\n".join(report(lines, []))
    verdict = rows_of(text, "| cardiac | 8 |")[0]
    assert verdict.endswith("| 104 | - | CMUNeXt-S (204), width 4 (204), UNeXt | TinyU-Net |")
    start = "| cardiac | {} | "
    assert rows_of(text, start.format("UNeXt") + "104 | 0.01 / 0.001 | **-0.0200 [")
    # At its better rate it is in the table of the task.
    assert not rows_of(text, start.format("TinyU-Net") + "104 |")
    assert rows_of(text, start.format("CMUNeXt-S") + "204 | 0.003 / 0.01 | **-0.0300 [")
    assert rows_of(text, start.format("width 4") + "204 | 0.003 / 0.003 | **-0.0450 [")
    assert rows_of(text, start.format("CMUNeXt-S") + "0.001 | 204 b | 0.8550 [")
    assert "Other settings" not in text


def test_report_follows_a_length_in_bfloat16_where_none_is_in_float32() -> None:
    lines = [line(name, [0.80, 0.82]) for name in ("full", "width_8", "unext")]
    lines += [line(name, [0.70, 0.72], bfloat16=True) for name in ("full", "width_8")]
    lines += [line(name, [0.84, 0.86], bfloat16=True, updates=200) for name in ("full", "width_8")]
    text = "\n".join(report(lines, []))
    _, short, long, *_ = rows_of(text, "| cardiac |")
    assert short.startswith("| cardiac | 104 | 0 / 0 | 0.8100 / 0.8100 |")
    assert long.startswith("| cardiac | 204 b | 0 / 0 | 0.8500 / 0.8500 |")
    assert long.endswith("| +0.0400 [+0.0400, +0.0400] | +0.0400 [+0.0400, +0.0400] |")
    # What both precisions were trained for tells them apart.
    other = rows_of(text, "| cardiac | full width | 100 updates")[0]
    assert "bfloat16, CPU | 0 | 0.7100 [0.7100, 0.7100] | **-0.1000 " in other


def test_report_compares_the_longest_trainings_by_each_measure() -> None:
    objects = {"instances": [[2, 0, 0, 1.6], [2, 0, 0, 1.6]]}
    missed = {"instances": [[1, 0, 2, 0.9], [1, 0, 2, 0.9]]}
    near, far = {"hd95": [[1.0], [3.0]]}, {"hd95": [[None], [8.0]]}
    lines = [line(name, [0.8, 0.8], **objects) for name in ("full", "width_8", "unext")]
    lines.append(line("full", [0.9, 0.9], updates=200, nsd=[[0.5], [0.7]], **missed, **near))
    lines.append(line("width_8", [0.9, 0.9], updates=200, nsd=[[0.9], [0.9]], **objects, **far))
    means, differences = rows_of("\n".join(report(lines, [])), "| cardiac | 204 |")
    cells = "| 0.9000 / 0.9000 | 0.6000 / 0.9000 | 2.00 / 8.00 (1 without) | 0.500 / 1.000 |"
    assert means.startswith(f"| cardiac | 204 | 0 / 0 {cells}")
    assert differences == (
        "| cardiac | 204 | 0 | +0.0000 [+0.0000, +0.0000] | **+0.3000 [+0.3000, +0.3000]** | "
        "**+5.00 [+5.00, +5.00]** (1 cases) | **+0.500 [+0.500, +0.500]** |"
    )


def test_report_compares_the_pick_by_each_measure() -> None:
    lines = [
        line("width_8", [0.9] * 3, nsd=[[0.4], [0.6], [0.8]], hd95=[[1.0], [2.0], [None]]),
        line("unext", [0.9] * 3, nsd=[[0.5], [0.7], [0.9]], hd95=[[4.0], [5.0], [6.0]]),
    ]
    text = "\n".join(report(lines, []))
    assert rows_of(text, "| pick minus |") == ["| pick minus | common seeds | Dice | NSD | HD95 |"]
    assert rows_of(text, "| UNeXt |")[1] == (
        "| UNeXt | 0 | +0.0000 [+0.0000, +0.0000] | **-0.1000 [-0.1000, -0.1000]** | "
        "**-3.00 [-3.00, -3.00]** (2 cases) |"
    )


def test_report_compares_objects_case_by_case() -> None:
    lines = [
        line("width_8", [0.9, 0.9], instances=[[2, 0, 0, 1.6], [1, 1, 1, 0.8]]),
        line("unext", [0.9, 0.9], instances=[[1, 0, 2, 0.9], [1, 1, 1, 0.8]]),
    ]
    text = "\n".join(report(lines, []))
    # F1 of 1 and 0.5 against 0.5 and 0.5; both cases are of one patient.
    assert rows_of(text, "| UNeXt |")[1].endswith(" | **+0.250 [+0.250, +0.250]** |")
    without_pick = "\n".join(report(lines[1:], []))
    assert len(rows_of(without_pick, "| UNeXt |")) == 1 and "pick minus |" not in without_pick


def test_report_names_the_seeds_of_each_row_and_pairs_common_ones() -> None:
    lines = [line("width_8", [0.9 - seed / 10] * 2, seed=seed) for seed in (2, 0, 1)]
    lines += [line("unext", [0.85] * 2), line("width_4", [0.5] * 2, seed=7)]
    lines += [line("full", [0.9] * 2), line("full", [0.7] * 2, seed=7, updates=50)]
    text = "\n".join(report(lines, []))
    pick = next(row for row in text.splitlines() if row.startswith("| **width 8, the pick**"))
    # Of its own three seeds, while the difference is of the one that UNeXt has too.
    assert "| 0, 1, 2 | 0.8000 [0.8000, 0.8000] |" in pick
    mean, differences = rows_of(text, "| UNeXt |")
    assert "| 0 | 0.8500 [0.8500, 0.8500] |" in mean
    assert differences.startswith("| UNeXt | 0 | **+0.0500 [+0.0500, +0.0500]** |")
    assert rows_of(text, "| width 4 |")[1] == "| width 4 | - | - | - | - |"
    verdict = rows_of(text, "| cardiac | 8 |")[0]
    assert "| +0.0000 [+0.0000, +0.0000] (104): not worse |" in verdict
    # The full width with half of the updates has another seed.
    assert verdict.endswith("| not measured | 104 | UNeXt | - | width 4 (no common seed) |")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"device": "NVIDIA H100"}, "learning rate 0.01, NVIDIA H100"),
        ({"whole": True}, "learning rate 0.01, whole patches, CPU"),
        ({"bfloat16": True}, "learning rate 0.01, bfloat16, CPU"),
    ],
    ids=["device", "whole", "bfloat16"],
)
def test_report_keeps_settings_apart(other: dict, words: str) -> None:
    lines = [line(name, [0.8, 0.8]) for name in ("width_8", "unext", "full")]
    lines += [line(name, [0.6, 0.6], seed=1, **other) for name in ("width_8", "unext")]
    text = "\n".join(report(lines, []))
    # As another seed it would make a mean of 0.7.
    assert "| 0 | 0.8000 [0.8000, 0.8000] |" in rows_of(text, "| UNeXt |")[0]
    row = rows_of(text, "| cardiac | UNeXt |")[0]
    assert row.startswith(f"| cardiac | UNeXt | 100 updates of 2 crops, {words} | 1 | 0.6000 ")
    # Seed 1 was not trained by the main setting.
    assert row.endswith("| - | +0.0000 [+0.0000, +0.0000] |")
    alone = "\n".join(report(lines[3:], []))
    assert f"100 updates of 2 crops, {words} (104 updates in whole epochs)." in alone


def test_report_compares_the_longest_trainings_that_share_a_seed() -> None:
    lines = [line(name, [0.8, 0.8]) for name in ("full", "width_8", "unext")]
    lines += [
        line("full", [0.9, 0.9], updates=200),
        line("width_8", [0.7] * 2, seed=3, updates=200),
    ]
    text = "\n".join(report(lines, []))
    assert "| +0.0000 [+0.0000, +0.0000] (104): not worse |" in rows_of(text, "| cardiac | 8 |")[0]
    means, differences = rows_of(text, "| cardiac | 204 |")
    assert means.startswith("| cardiac | 204 | 0 / 3 | 0.9000 / 0.7000 |")
    assert differences == "| cardiac | 204 | - | - | - | - | - |"


def test_report_does_not_double_across_devices() -> None:
    lines = [line(name, [0.8, 0.8]) for name in ("full", "width_8")]
    text = "\n".join(report([*lines, line("full", [0.7, 0.7], updates=50, device="H100")], []))
    assert "| not measured | 104 |" in rows_of(text, "| cardiac | 8 |")[0]
    assert "How long is long enough" not in text


def test_report_ends_with_the_commands_of_its_trainings() -> None:
    lines = [
        line("full", [0.5], seed=1),
        line("full", [0.5]),
        line("width_8", [0.5]),
        line("unext", [0.5]),
        line("unext", [0.5], bfloat16=True, learning_rate=0.001, updates=200),
        *(line(name, [0.5], task="stain") for name in ("width_8", "unext")),
        line("full", [0.5], task="stain", whole=True, device="H100"),
    ]
    start = "python scripts/benchmarks/comparison.py train --data DATA --work WORK --tasks "
    found = rows_of("\n".join(report(lines, [])), start)
    assert [row.removeprefix(start) for row in found] == [
        "cardiac --updates 100 --learning_rate 0.01 --seeds 0,1 --networks full",
        "cardiac,stain --updates 100 --learning_rate 0.01 --networks unext,width_8",
        "cardiac --updates 200 --learning_rate 0.001 --bfloat16 --networks unext",
        "stain --updates 100 --learning_rate 0.01 --whole --device cuda --networks full",
    ]
