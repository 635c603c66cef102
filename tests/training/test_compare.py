from __future__ import annotations

import random

import numpy as np
import pytest

from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.training.compare import (
    Difference,
    compare_trainings,
    decide_width,
    dice_difference,
    verification_summary,
)
from monai_xtiny.training.train import Training


def dice(seeds: int = 2, cases: int = 12, classes: int = 2, seed: int = 0) -> np.ndarray:
    """Dice of trainings that differ little, on cases that differ much."""
    generator = np.random.default_rng(seed)
    difficulty = generator.uniform(0.3, 0.9, (1, cases, classes))
    return difficulty + generator.normal(0, 0.01, (seeds, cases, classes))


def test_dice_difference_of_identical_trainings_is_zero_for_certain() -> None:
    runs = np.repeat(dice(1), 3, axis=0)
    assert dice_difference(runs, runs) == pytest.approx((0, 0, 0), abs=1e-12)


def test_dice_difference_pairs_the_cases() -> None:
    # Cases differ by tens of points, networks by exactly one on each: the interval has no width.
    runs = np.repeat(dice(1), 3, axis=0)
    assert dice_difference(runs, runs + 0.01) == pytest.approx((0.01, 0.01, 0.01), abs=1e-12)
    shuffled = (runs + 0.01)[:, np.random.default_rng(1).permutation(12)]
    mean, low, high = dice_difference(runs, shuffled)
    assert mean == pytest.approx(0.01, abs=1e-12)
    assert high - low > 0.05


def test_dice_difference_knows_that_trainings_differ() -> None:
    # The same three trainings under other names: no difference, and no certainty.
    runs = dice(1) + np.array([-0.02, 0.0, 0.02])[:, None, None]
    mean, low, high = dice_difference(runs, runs[[2, 0, 1]])
    assert mean == pytest.approx(0, abs=1e-12)
    # Each network's mean over 3 has variance 0.02**2 / 3, of the unbiased estimate.
    assert high - low == pytest.approx(2 * 1.96 * 0.02 * np.sqrt(2 / 3), rel=0.1)
    wider = dice_difference(dice(1), np.concatenate([dice(1) - 0.03, dice(1) + 0.03]))
    assert wider[0] == pytest.approx(0, abs=1e-12)
    assert wider[2] == pytest.approx(0.03 * np.sqrt(2), abs=1e-9)


def test_dice_difference_equals_a_loop_over_draws() -> None:
    first, second = dice(2, 6, seed=1), dice(3, 6, seed=2)
    first[:, 2:4, 1] = second[:, 2:4, 1] = np.nan
    first[:, 5] = second[:, 5] = np.nan
    found = dice_difference(first, second, num_draws=200, seed=4)
    generator = np.random.default_rng(4)
    cases = generator.multinomial(5, [1 / 5] * 5, 200)
    parts = []
    for runs in (first, second):
        count = len(runs)
        trainings = generator.multinomial(count, [1 / count] * count, 200)
        mean = runs.mean(axis=0)
        wide = mean + np.sqrt(count / (count - 1)) * (runs - mean)
        parts.append(
            [
                np.repeat(wide[:, :5], drawn, axis=0).mean(axis=0)[np.repeat(range(5), often)]
                for drawn, often in zip(trainings, cases, strict=True)
            ]
        )
    draws = []
    for before, after in zip(*parts, strict=True):
        columns = (after - before).T
        present = [column[np.isfinite(column)] for column in columns]
        draws.append(np.mean([column.mean() for column in present if len(column)]))
    assert found[1:] == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=1e-12)


def test_dice_difference_is_the_difference_of_the_mean_dice() -> None:
    first, second = dice(seed=1), dice(seed=2)
    first[:, :7, 1] = second[:, :7, 1] = np.nan
    first[:, 3] = second[:, 3] = np.nan
    means = [
        np.mean([Evaluation((), _rows(run), ()).mean_dice for run in runs])
        for runs in (first, second)
    ]
    mean, low, high = dice_difference(first, second)
    assert mean == pytest.approx(means[1] - means[0], abs=1e-12)
    assert low < mean < high


def _rows(run: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(value) else value for value in row) for row in run)


def test_dice_difference_narrows_with_more_cases() -> None:
    first, second = dice(cases=10), dice(cases=10) + 0.05
    second += np.random.default_rng(3).normal(0, 0.1, (1, 10, 2))
    few = dice_difference(first, second)
    many = dice_difference(np.tile(first, (1, 16, 1)), np.tile(second, (1, 16, 1)))
    assert many[0] == pytest.approx(few[0])
    assert (few[2] - few[1]) / (many[2] - many[1]) == pytest.approx(4, rel=0.25)


def test_dice_difference_widens_with_the_confidence_level() -> None:
    first, second = dice(seed=1), dice(seed=2)
    _, low, high = dice_difference(first, second, confidence_level=0.5)
    _, lower, higher = dice_difference(first, second, confidence_level=0.99)
    assert lower < low < high < higher


def test_dice_difference_holds_the_truth_as_often_as_its_docstring_says() -> None:
    generator = np.random.default_rng(0)
    repetitions, held = 150, 0
    for _ in range(repetitions):
        cases = generator.normal(0, 0.02, (1, 30, 1))
        first, second = (
            generator.normal(0, 0.01, (2, 1, 1)) + generator.normal(0, 0.02, (2, 30, 1))
            for _ in range(2)
        )
        _, low, high = dice_difference(first, second + cases, num_draws=200)
        held += low <= 0 <= high
    assert 0.8 < held / repetitions < 0.99


def test_dice_difference_is_seeded_and_leaves_the_global_generators_alone() -> None:
    first, second = dice(seed=1), dice(seed=2)
    np.random.seed(5), random.seed(5)
    expected = np.random.random(), random.random()
    np.random.seed(5), random.seed(5)
    found = dice_difference(first, second, seed=3)
    assert (np.random.random(), random.random()) == expected
    assert dice_difference(first, second, seed=3) == found
    assert dice_difference(first, second, seed=4)[1:] != found[1:]


@pytest.mark.parametrize(
    "first, second, message",
    [
        (dice(), dice(cases=11), r"shapes \(2, 12, 2\) and \(2, 11, 2\)"),
        (dice()[0], dice()[0], r"shapes \(12, 2\) and"),
        (dice(seeds=0), dice(), r"shapes \(0, 12, 2\)"),
        (dice(cases=1), dice(cases=1), "1 of 1 cases held out have a class"),
        (np.full((2, 4, 1), np.nan),) * 2 + ("0 of 4 cases held out have a class",),
        (dice(), np.full((2, 12, 2), np.nan), "labels of different classes"),
    ],
    ids=["other cases", "no seeds axis", "no trainings", "one case", "no class", "other labels"],
)
def test_dice_difference_refuses_what_it_cannot_compare(first, second, message) -> None:
    with pytest.raises(ValueError, match=message):
        dice_difference(first, second)


GAINS = {"nothing": (-0.005, 0.004), "perhaps": (0.002, 0.02), "much": (0.011, 0.03)}
LOSSES = {"nothing": (-0.004, 0.002), "perhaps": (-0.02, 0.001), "much": (-0.03, -0.011)}


@pytest.mark.parametrize(
    "wider, narrower, expected",
    [
        ("nothing", "much", (True, 8)),
        ("nothing", "perhaps", (True, 8)),
        ("nothing", "nothing", (True, 4)),
        ("nothing", None, (True, 8)),
        (None, "much", (True, 8)),
        (None, "nothing", (True, 4)),
        ("perhaps", "much", (None, 8)),
        # What may be below the plateau is no measure for what is narrower still.
        ("perhaps", "nothing", (None, 8)),
        ("much", "nothing", (False, 16)),
        ("much", None, (False, 16)),
    ],
)
def test_decide_width_looks_at_whole_intervals(wider, narrower, expected) -> None:
    gains = [] if wider is None else [Difference(16, 0.003, *GAINS[wider])]
    losses = [] if narrower is None else [Difference(4, -0.003, *LOSSES[narrower])]
    assert decide_width(8, [*gains, *losses]) == expected
    assert decide_width(8, [*losses, *gains]) == expected


def test_decide_width_measures_with_the_tolerance() -> None:
    found = Difference(16, 0.02, 0.011, 0.03), Difference(4, -0.02, -0.03, -0.011)
    assert decide_width(8, found, tolerance=0.04) == (True, 4)
    assert decide_width(8, found, tolerance=0.03) == (None, 8)
    assert decide_width(8, found, tolerance=0.01) == (False, 16)


def training(width: int, seed: int, level: float, cases: tuple[str, ...] = ("a", "b")) -> Training:
    """A training that reaches a level on every case."""
    evaluation = Evaluation(
        cases, tuple((level, None) for _ in cases), tuple((1.0, None) for _ in cases)
    )
    return Training(width, 0, seed, 10, (), evaluation, 2.0)


def trainings(**levels: float) -> list[Training]:
    """Two trainings of each width, a thousandth apart."""
    return [
        training(int(width[1:]), seed, level + 0.001 * seed)
        for seed in range(2)
        for width, level in levels.items()
    ]


def test_compare_trainings_moves_a_choice_below_the_plateau() -> None:
    found = compare_trainings(8, trainings(w4=0.7, w8=0.8, w16=0.85), num_updates=200)
    assert (found.selected, found.recommended, found.is_on_plateau) == (8, 16, False)
    assert found.widths == (16, 8, 4)
    assert [item.max_features for item in found.differences] == [16, 4]
    assert [item.mean for item in found.differences] == pytest.approx([0.05, -0.1])
    assert (len(found.trainings), found.num_updates) == (6, 200)


def test_compare_trainings_takes_the_ends_of_the_ladder() -> None:
    widest = compare_trainings(16, trainings(w8=0.8, w16=0.85), num_updates=200)
    assert (widest.widths, widest.is_on_plateau, widest.recommended) == ((16, 8), True, 16)
    narrowest = compare_trainings(1, trainings(w1=0.8, w2=0.801), num_updates=200)
    assert (narrowest.widths, narrowest.recommended) == ((2, 1), 1)


def test_compare_trainings_refuses_other_cases() -> None:
    with pytest.raises(ValueError, match="measured on different cases"):
        compare_trainings(8, [training(8, 0, 0.5), training(16, 0, 0.5, ("a", "c"))], num_updates=1)


@pytest.mark.parametrize(
    "levels, lines",
    [
        (
            {"w4": 0.7, "w8": 0.8, "w16": 0.804},
            [
                "width 8 is on the plateau: width 16 gains +0.0054 Dice at most; width 4 would not "
                "do, at -0.0986 at best (tolerance 0.01)",
                "recommended: width 8, as it is",
            ],
        ),
        (
            {"w4": 0.799, "w8": 0.8, "w16": 0.8},
            [
                "width 8 is on the plateau: width 16 gains +0.0014 Dice at most; width 4 would do, "
                "at -0.0024 at worst (tolerance 0.01)",
                "recommended: width 4",
            ],
        ),
        (
            {"w4": 0.7, "w8": 0.8, "w16": 0.85},
            [
                "200 updates a training, 2 cases held out",
                "width 8 is too narrow: width 16 gains +0.0486 Dice at least; width 4 would not",
                "recommended: width 16, if it stays ahead with more --epochs",
            ],
        ),
        (
            {"w4": 0.79, "w8": 0.8, "w16": 0.81},
            [
                "undecided whether width 8 is on the plateau: width 16 gains between +0.0086 and "
                "+0.0114 Dice; whether width 4 would do is undecided (tolerance 0.01)",
                "keep width 8; more --num_seeds, --epochs or labeled cases decide",
            ],
        ),
        ({"w4": 0.7, "w8": 0.8}, ["width 8 is the widest of the ladder; width 4 would not"]),
        ({"w8": 0.8, "w16": 0.8}, ["at most; it is the narrowest of the ladder (tolerance"]),
    ],
    ids=["plateau", "narrower does", "too narrow", "undecided", "widest", "narrowest"],
)
def test_verification_summary_says_what_was_found(levels, lines) -> None:
    found = compare_trainings(8, trainings(**levels), num_updates=200)
    text = verification_summary(found, {16: 40627, 8: 10331, 4: 2671})
    for line in lines:
        assert line in text
    row = next(line for line in text.splitlines() if line.startswith("    8"))
    assert row.split() == ["8", "10,331", "0.8000", "0.8010", "0.8005", "selected"]
