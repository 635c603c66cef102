from __future__ import annotations

import math

import numpy as np
import pytest

from monai_xtiny.selection.posterior import Belief
from monai_xtiny.training.race import (
    RACE_SD,
    STOPPED_SD,
    UNLABELED_FACTOR,
    leader,
    mean_dice,
    neighbors,
    next_widths,
    race_steps,
    raced_belief,
)

LADDER = (32, 16, 8, 4, 2, 1)


def runs(**levels: float) -> dict[int, np.ndarray]:
    """Two trainings of each width, on four cases with one class."""
    spread = np.array([-0.001, 0.001])[:, None, None] + np.array([0, 0.1, -0.1, 0.05])[:, None]
    return {int(width[1:]): level + spread for width, level in levels.items()}


def test_mean_dice_gives_classes_the_same_weight() -> None:
    dice = np.array([[[0.5, 1.0, np.nan], [0.5, np.nan, np.nan]]])
    assert mean_dice(dice) == 0.75


def test_leader_is_the_smallest_within_the_tolerance_of_the_best() -> None:
    assert leader(runs(w16=0.8, w8=0.795, w4=0.785)) == 8
    assert leader(runs(w16=0.8, w8=0.795, w4=0.785), tolerance=0.02) == 4
    assert leader(runs(w16=0.78, w8=0.8, w4=0.7)) == 8


@pytest.mark.parametrize(
    "levels, expected",
    [
        ({"w16": 0.8}, (8, 32)),
        ({"w16": 0.8, "w8": 0.7}, (32,)),
        ({"w16": 0.8, "w8": 0.799}, (4, 32)),
        ({"w16": 0.8, "w8": 0.7, "w32": 0.9}, ()),
        ({"w2": 0.8, "w1": 0.8}, ()),
        ({"w4": 0.5, "w8": 0.8, "w16": 0.8}, ()),
        ({"w4": 0.5, "w8": 0.8, "w16": 0.801}, (32,)),
        ({"w2": 0.5, "w4": 0.8, "w8": 0.806, "w16": 0.809}, ()),
    ],
    ids=[
        "at first",
        "narrower known",
        "leads",
        "widest leads",
        "narrowest leads",
        "flat above",
        "rises above",
        "rises on and on",
    ],
)
def test_next_widths_are_the_neighbors_of_the_leader_and_what_it_is_compared_with(
    levels, expected
) -> None:
    assert next_widths(LADDER, runs(**levels)) == expected


def test_a_race_ends_where_both_neighbors_of_the_leader_are_known() -> None:
    dice = runs(w1=0.1, w2=0.5, w4=0.795, w8=0.799, w16=0.799, w32=0.804)
    known = {16: dice[16]}
    order = [16]
    while missing := next_widths(LADDER, known):
        known[missing[0]] = dice[missing[0]]
        order.append(missing[0])
    assert order == [16, 8, 4, 2]
    assert {2, 4, 8} <= set(known)


@pytest.mark.parametrize("width, expected", [(32, (32, 16)), (8, (16, 8, 4)), (1, (2, 1))], ids=str)
def test_neighbors_end_with_the_ladder(width, expected) -> None:
    assert neighbors(LADDER, width) == expected


def test_race_steps_draw_patients_with_all_their_cases() -> None:
    generator = np.random.default_rng(0)
    alone = {width: 0.8 + generator.normal(0, 0.03, (2, 8, 1)) for width in (16, 8, 4)}
    frames = {width: np.repeat(dice, 3, axis=1) for width, dice in alone.items()}
    patients = tuple(np.repeat(list("abcdefgh"), 3))
    assert race_steps(frames, patients=patients) == pytest.approx(race_steps(alone))
    assert race_steps(frames)[1] != pytest.approx(race_steps(alone)[1], rel=0.05)
    belief = Belief(3.0, 2.0)
    found = raced_belief(belief, frames, ladder=LADDER, patients=patients)
    assert found == raced_belief(belief, alone, ladder=LADDER)


def test_race_steps_are_sure_where_the_cases_agree_and_unsure_where_they_do_not() -> None:
    assert race_steps(runs(w16=0.8, w8=0.7, w4=0.5)) == (4, 0)
    close = runs(w16=0.8, w8=0.79, w4=0.5)
    step, sd = race_steps(close)
    assert step == math.log2(leader(close)) == 3 and sd > 0.3
    assert race_steps(runs(w16=0.8, w8=0.79, w4=0.5), tolerance=0.1) == (3, 0)


def test_race_steps_pair_the_cases_and_leave_out_classes_that_a_case_lacks() -> None:
    # Cases differ by tens of points, widths by the same on each.
    assert race_steps(runs(w16=0.8, w8=0.785)) == (4, 0)
    dice = runs(w16=0.8, w8=0.789)
    lacking = {width: np.concatenate([item, item * np.nan], axis=2) for width, item in dice.items()}
    assert race_steps(lacking) == race_steps(dice)
    some = {width: np.concatenate([item, item], axis=1) for width, item in dice.items()}
    for item in some.values():
        item[:, 4:] = np.nan
    assert race_steps(some) == race_steps(dice)


def test_race_steps_are_seeded() -> None:
    dice = runs(w16=0.8, w8=0.79, w4=0.5)
    assert race_steps(dice) == race_steps(dice)
    assert race_steps(dice, seed=1) != race_steps(dice)


def test_raced_belief_lies_between_what_was_known_and_what_the_race_says() -> None:
    before = Belief(2.0, 0.8)
    after = raced_belief(before, runs(w32=0.8, w16=0.8, w8=0.7), ladder=LADDER)
    assert 2 < after.mean < 4 and after.sd < min(before.sd, RACE_SD)
    assert raced_belief(before, runs(w16=0.8), ladder=LADDER) == before
    known = UNLABELED_FACTOR * before.sd  # counts a quarter
    assert math.isclose(after.sd, (known**-2 + RACE_SD**-2) ** -0.5)


def test_raced_belief_is_less_sure_of_a_race_that_time_stopped() -> None:
    before, two = Belief(2.0, 0.8), runs(w32=0.8, w16=0.8, w8=0.7, w4=0.6)
    one = {width: dice[:1] for width, dice in two.items()}
    three = {width: np.concatenate([dice, dice[:1]]) for width, dice in two.items()}
    stopped = raced_belief(before, one, ladder=LADDER)
    whole = raced_belief(before, two, ladder=LADDER)
    known = UNLABELED_FACTOR * before.sd
    assert math.isclose(stopped.sd, (known**-2 + STOPPED_SD**-2) ** -0.5)
    assert stopped.sd > whole.sd == raced_belief(before, three, ladder=LADDER).sd
    assert stopped.mean < whole.mean  # nearer to what was known
    # 16 leads: its neighbors count, those that have not run too, and no other width.
    for missing in (32, 8):
        once = {**two, missing: two[missing][:1]}
        without = {width: dice for width, dice in two.items() if width != missing}
        assert raced_belief(before, once, ladder=LADDER) == stopped
        assert missing == 32 or raced_belief(before, without, ladder=LADDER) == stopped
    assert raced_belief(before, {**two, 4: two[4][:1]}, ladder=LADDER) == whole
