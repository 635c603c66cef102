from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.selection.posterior import Belief
from monai_xtiny.training.compare import (
    Difference,
    Verification,
    compare_trainings,
    dice_difference,
    is_on_plateau,
    race_of,
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
        for label, patients in enumerate((5, 3)):  # those that have the class
            mean = np.nanmean(wide[..., label], axis=1, keepdims=True)
            factor = np.sqrt(patients / (patients - 1))
            wide[..., label] = mean + factor * (wide[..., label] - mean)
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


def test_dice_difference_draws_patients_with_all_their_cases() -> None:
    first, second = dice(seed=1), dice(seed=2)
    first[:, 3] = second[:, 3] = np.nan
    frames = [np.repeat(runs, 3, axis=1) for runs in (first, second)]
    patients = np.repeat([f"p{number:02}" for number in range(first.shape[1])], 3)
    found = dice_difference(*frames, patients=tuple(patients))
    assert found == pytest.approx(dice_difference(first, second), abs=1e-12)
    without = dice_difference(*frames)
    assert without[2] - without[1] < 0.8 * (found[2] - found[1])


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


@pytest.mark.parametrize(
    "wider, expected", [("nothing", True), (None, True), ("perhaps", None), ("much", False)]
)
def test_is_on_plateau_looks_at_the_whole_interval_of_the_next_wider(wider, expected) -> None:
    others = [Difference(4, -0.5, -0.6, -0.4)]
    if wider is not None:
        others += [Difference(32, 0.5, 0.4, 0.6), Difference(16, 0.003, *GAINS[wider])]
    assert is_on_plateau(8, others) is expected
    assert is_on_plateau(8, others[::-1]) is expected


def test_is_on_plateau_measures_with_the_tolerance() -> None:
    found = [Difference(16, 0.02, 0.011, 0.03)]
    assert [is_on_plateau(8, found, tolerance=item) for item in (0.04, 0.03, 0.01)] == [
        True, None, False,
    ]  # fmt: skip


CASES = tuple("abcdefgh")


def training(
    width: int,
    seed: int,
    level: float,
    cases: tuple[str, ...] = CASES,
    patients: tuple[str, ...] = (),
) -> Training:
    """A training that reaches a level on every case."""
    dice = tuple((level, None) for _ in cases)
    evaluation = Evaluation(cases, dice, patients=patients)
    return Training(width, 0, seed, 10, (), evaluation, 2.0)


def trainings(**levels: float) -> list[Training]:
    """Two trainings of each width, a thousandth apart."""
    return [
        training(int(width[1:]), seed, level + 0.001 * seed)
        for seed in range(2)
        for width, level in levels.items()
    ]


LADDER = (32, 16, 8, 4, 2, 1)
# What is known before: nothing much.
VAGUE = Belief(3.0, 2.0)


def compare(items: list[Training], selected: int = 8, belief: Belief = VAGUE) -> Verification:
    return compare_trainings(selected, items, ladder=LADDER, belief=belief, num_updates=480)


@pytest.mark.parametrize(
    "cases, patients, is_decided",
    [
        (CASES, (), True),
        (CASES[:7], (), False),
        (CASES, tuple("ppqqrrss"), False),
        (CASES + tuple("ijklmnop"), tuple("abcdefgh") * 2, True),
    ],
    ids=["eight cases", "seven cases", "four patients", "eight patients"],
)
def test_compare_trainings_decides_nothing_by_few_patients(cases, patients, is_decided) -> None:
    items = [
        training(width, seed, level, cases, patients)
        for width, level in ((16, 0.8), (8, 0.8), (4, 0.7))
        for seed in range(2)
    ]
    found = compare(items)
    assert (found.recommended, found.is_decided) == (8, is_decided)
    assert found.is_on_plateau is (True if is_decided else None)
    text = verification_summary(found, {4: 1, 8: 2, 16: 3})
    assert ("the intervals decide it" in text) is is_decided
    assert ("are needed to decide: label more" in text) is not is_decided
    assert ("but few cases are held out; whether width 4 would do is" in text) is not is_decided


def test_compare_trainings_draws_patients_with_all_their_cases() -> None:
    # Eight patients with four cases each: half of them gain by the wider network, half lose.
    gains = np.repeat([0.02, -0.02] * 4, 4)
    patients = tuple(f"p{number // 4}" for number in range(32))
    sizes = []
    for known in (patients, ()):
        items = [
            replace(
                training(width, seed, 0.8),
                evaluation=Evaluation(
                    tuple(f"c{number:02}" for number in range(32)),
                    tuple((0.8 + gain * (width > 8),) for gain in gains),
                    patients=known,
                ),
            )
            for width in (16, 8)
            for seed in range(2)
        ]
        found = compare(items)
        (difference,) = found.differences
        (row,) = (row for row in race_of(found).widths if row.max_features != found.recommended)
        sizes.append(difference.high - difference.low)
        assert row.high - row.low == pytest.approx(sizes[-1], abs=1e-4)
    assert sizes[0] > 1.7 * sizes[1]


def test_compare_trainings_takes_single_trainings_for_no_proof() -> None:
    items = [item for item in trainings(w4=0.6, w8=0.7, w16=0.9) if item.seed == 0]
    found = compare(items)
    assert found.is_on_plateau is None and not found.is_decided
    text = verification_summary(found, {4: 1, 8: 2, 16: 3})
    assert "width 16 gains +0.2000 Dice, but not both were trained twice" in text
    assert "whether width 4 would do is undecided" in text


def test_compare_trainings_has_nothing_to_decide_where_one_width_may_be_used() -> None:
    found = compare_trainings(
        8, [training(8, 0, 0.8)], ladder=LADDER, belief=VAGUE, num_updates=480, among=(8,)
    )
    assert (found.recommended, found.is_decided) == (8, True)
    assert "no other width than 8 may be used" in verification_summary(found, {8: 2})


def test_compare_trainings_moves_a_choice_below_the_plateau() -> None:
    found = compare(trainings(w4=0.7, w8=0.8, w16=0.85, w32=0.851))
    assert (found.selected, found.recommended, found.is_on_plateau) == (8, 16, False)
    assert found.widths == (32, 16, 8, 4)
    assert [item.max_features for item in found.differences] == [32, 16, 4]
    assert [item.mean for item in found.differences] == pytest.approx([0.051, 0.05, -0.1])
    assert (len(found.trainings), found.num_updates) == (8, 480)
    assert found.is_decided
    assert max(found.probabilities, key=found.probabilities.get) == 16
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=0.02)


def test_compare_trainings_excludes_what_is_worse_for_certain_whatever_was_known() -> None:
    sure = Belief(2.0, 0.1)  # 4
    levels = {"w4": 0.7, "w8": 0.8, "w16": 0.8}
    assert compare(trainings(**levels), belief=sure).recommended == 8
    # One training of a width does not show how much they differ.
    assert compare(trainings(**levels)[:3], belief=sure).recommended == 4


def test_compare_trainings_takes_no_wider_one_than_suffices_for_certain() -> None:
    found = compare(trainings(w2=0.7, w4=0.799, w8=0.8), belief=Belief(5.0, 0.1))
    assert (found.recommended, found.is_decided) == (4, True)
    found = compare(trainings(w2=0.7, w4=0.795, w8=0.8)[:3], belief=Belief(5.0, 0.1))
    assert found.recommended == 8


def test_compare_trainings_lets_narrow_widths_be_further_behind_in_briefer_trainings() -> None:
    items = trainings(w4=0.5, w8=0.785, w16=0.8)
    found = [
        compare_trainings(16, items, ladder=LADDER, belief=Belief(3.5, 0.1), num_updates=updates)
        for updates in (120, 480)
    ]
    assert [item.recommended for item in found] == [8, 16]
    assert found[0].tolerance == pytest.approx(2 * found[1].tolerance)


def test_compare_trainings_weighs_what_was_known() -> None:
    close = trainings(w4=0.789, w8=0.8, w16=0.809)
    assert compare(close, belief=Belief(4.5, 0.3)).recommended == 16
    assert compare(close, belief=Belief(2.5, 0.3)).recommended in (8, 4)
    assert not compare(close).is_decided


@pytest.mark.parametrize(
    "levels, recommended, is_decided",
    [
        ({"w4": 0.7, "w8": 0.8, "w16": 0.802}, 8, True),
        ({"w4": 0.7, "w8": 0.8}, 8, False),  # the wider neighbor has not run
        ({"w4": 0.791, "w8": 0.8, "w16": 0.802}, 8, False),
    ],
    ids=["decided", "no neighbor", "the narrower may do"],
)
def test_compare_trainings_knows_when_it_does_not_know(levels, recommended, is_decided) -> None:
    found = compare(trainings(**levels), belief=Belief(3.0, 0.5))
    assert (found.recommended, found.is_decided) == (recommended, is_decided)


def test_compare_trainings_takes_the_ends_of_the_ladder() -> None:
    widest = compare(trainings(w16=0.8, w32=0.85), 32)
    assert (widest.widths, widest.is_on_plateau, widest.recommended) == ((32, 16), True, 32)
    assert widest.is_decided
    narrowest = compare(trainings(w1=0.8, w2=0.801), 1, Belief(0.0, 0.5))
    assert (narrowest.widths, narrowest.recommended) == ((2, 1), 1)
    assert narrowest.is_decided


def test_compare_trainings_refuses_other_cases() -> None:
    with pytest.raises(ValueError, match="measured on different cases"):
        compare([training(8, 0, 0.5), training(16, 0, 0.5, ("a", "c"))])


def test_race_of_tells_differences_from_the_recommended_width() -> None:
    found = compare(trainings(w4=0.7, w8=0.8, w16=0.85, w32=0.851))
    race = race_of(found)
    assert race is not None
    assert (race.searched, race.num_updates, race.num_cases, race.is_decided) == (8, 480, 8, True)
    rows = {row.max_features: row for row in race.widths}
    assert list(rows) == [32, 16, 8, 4]
    assert (rows[16].dice, rows[16].difference) == (pytest.approx(0.8505), 0)
    assert rows[8].difference == pytest.approx(-0.05)
    assert rows[8].low <= rows[8].difference <= rows[8].high < 0
    assert race_of(replace(found, trainings=())) is None


@pytest.mark.parametrize(
    "levels, lines",
    [
        (
            {"w4": 0.7, "w8": 0.8, "w16": 0.804},
            [
                "480 updates a training, 8 cases held out",
                "width 8 is on the plateau: width 16 gains +0.0054 Dice at most; width 4 would not "
                "do, at -0.0986 at best (tolerance 0.01)",
                "recommended: width 8, as it is (probability ",
                "; the intervals decide it)",
            ],
        ),
        (
            {"w2": 0.7, "w4": 0.799, "w8": 0.8, "w16": 0.8},
            [
                "width 8 is on the plateau: width 16 gains +0.0014 Dice at most; width 4 would do, "
                "at -0.0024 at worst (tolerance 0.01)",
                "recommended: width 4 (probability ",
            ],
        ),
        (
            {"w4": 0.7, "w8": 0.8, "w16": 0.85},
            [
                "width 8 is too narrow: width 16 gains +0.0486 Dice at least; width 4 would not",
                "recommended: width 16 (probability ",
                "undecided: more --num_seeds, --max_minutes or labeled cases narrow the intervals)",
            ],
        ),
        (
            {"w4": 0.79, "w8": 0.8, "w16": 0.81},
            [
                "undecided whether width 8 is on the plateau: width 16 gains between +0.0086 and "
                "+0.0114 Dice; whether width 4 would do is undecided (tolerance 0.01)",
                "; undecided: more --num_seeds",
            ],
        ),
        ({"w4": 0.7, "w8": 0.8}, ["width 8 is the widest that was trained; width 4 would not"]),
        ({"w8": 0.8}, ["no other width than 8 ran in the time: give more --max_minutes"]),
        ({"w8": 0.8, "w16": 0.8}, ["at most; it is the narrowest that was trained (tolerance"]),
    ],
    ids=["plateau", "narrower does", "too narrow", "undecided", "widest", "alone", "narrowest"],
)
def test_verification_summary_says_what_was_found(levels, lines) -> None:
    found = compare(trainings(**levels))
    text = verification_summary(found, {16: 40627, 8: 10331, 4: 2671, 2: 713})
    for line in lines:
        assert line in text
    row = next(line for line in text.splitlines() if line.startswith("    8"))
    share = f"{found.probabilities[8]:.0%}"
    assert row.split() == ["8", "10,331", "0.8000", "0.8010", "0.8005", "selected", share]


def test_compare_trainings_recommends_no_width_that_is_not_allowed() -> None:
    items = trainings(w4=0.7, w8=0.8, w16=0.85)
    assert compare(items).recommended == 16
    found = compare_trainings(
        8, items, ladder=LADDER, belief=VAGUE, num_updates=480, among=(8, 4, 2, 1)
    )
    assert found.recommended == 8
    # The probabilities are of the whole ladder; only the choice is narrower.
    assert found.probabilities == compare(items).probabilities
    within = trainings(w4=0.7, w8=0.8)
    found = compare_trainings(
        8, within, ladder=LADDER, belief=VAGUE, num_updates=480, among=(8, 4, 2, 1)
    )
    assert found.recommended == 8 and found.is_decided and not compare(within).is_decided
