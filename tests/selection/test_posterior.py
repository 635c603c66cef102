from __future__ import annotations

import numpy as np
import pytest

from monai_xtiny.selection.posterior import (
    WIDE_LOSS,
    Belief,
    crossing,
    expected_dice_lost,
    expected_losses,
    least_loss,
    listed_shares,
    prior_belief,
)

LADDER = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


def test_belief_gives_more_weight_to_the_surer() -> None:
    before = Belief(2.0, 0.5)
    assert before.updated(4.0, 0.1).mean == pytest.approx(4.0, abs=0.1)
    assert before.updated(4.0, 10.0).mean == pytest.approx(2.0, abs=0.01)
    assert before.updated(4.0, 0.5).sd == pytest.approx(0.5 / np.sqrt(2))


def test_belief_does_not_depend_on_the_order_of_evidence() -> None:
    one = Belief(3.0, 1.0).updated(2.0, 0.7).updated(5.0, 0.4)
    other = Belief(3.0, 1.0).updated(5.0, 0.4).updated(2.0, 0.7)
    assert (one.mean, one.sd) == (pytest.approx(other.mean), pytest.approx(other.sd))


def test_shares_are_probabilities_even_far_from_all_widths() -> None:
    for mean in (-40.0, 3.0, 90.0):
        shares = Belief(mean, 0.1).shares(LADDER)
        assert list(shares) == list(LADDER)
        assert sum(shares.values()) == pytest.approx(1)
    assert Belief(90.0, 0.1).shares(LADDER)[512] == pytest.approx(1)


def test_prior_asks_for_more_width_where_there_are_more_classes() -> None:
    means = [prior_belief(count).mean for count in (1, 2, 3, 4, 12)]
    assert means[0] == means[1] and sorted(means) == means and means[-1] > means[1] + 1


def test_crossing_interpolates_between_widths() -> None:
    curve = {32: 0.5, 16: 0.4, 8: 0.2, 4: 0.1}
    assert crossing(curve, 0.3) == 3.5
    assert crossing(curve, 0.4) == 4.0
    assert crossing(curve, 0.6) == 5.0
    assert crossing(curve, 0.05) == 2.0
    # The first one counts: what is above again further down is noise.
    assert crossing({16: 0.4, 8: 0.2, 4: 0.4}, 0.3) == 3.5


def test_crossing_takes_ladders_that_are_not_powers_of_two() -> None:
    assert crossing({5: 0.4, 2: 0.2}, 0.2) == pytest.approx(1.0)


def test_losses_are_steep_to_the_narrow_side() -> None:
    losses = expected_losses({32: 0.0, 16: 1.0, 8: 0.0, 4: 0.0})
    assert losses[16] == 0
    assert losses[4] > 4 * losses[8] > 0
    assert losses[8] > losses[32] > 0


def test_least_loss_takes_the_wider_where_the_narrower_is_not_surely_enough() -> None:
    assert least_loss({16: 0.5, 8: 0.25, 4: 0.25}) == 16
    assert least_loss({16: 0.02, 8: 0.18, 4: 0.8}) == 4
    assert least_loss({16: 0.4, 8: 0.3, 4: 0.3}, among=[8, 4]) == 8


def test_listed_shares_leave_out_what_is_not_worth_listing() -> None:
    assert listed_shares({16: 0.90049, 8: 0.097, 4: 0.00251}) == {16: 0.9, 8: 0.097}


def test_expected_dice_lost_is_the_narrow_part_of_the_loss() -> None:
    shares = Belief(3.2, 1.1).shares(LADDER)
    for width in LADDER:
        steps = {needed: np.log2(width / needed) for needed in LADDER}
        wide = sum(WIDE_LOSS * steps[o] * share for o, share in shares.items() if steps[o] > 0)
        assert expected_dice_lost(shares, width) + wide == pytest.approx(
            expected_losses(shares)[width]
        )


def test_expected_dice_lost_falls_with_the_width_to_nothing() -> None:
    shares = Belief(3.2, 1.1).shares(LADDER)
    lost = [expected_dice_lost(shares, width) for width in LADDER]
    assert lost[0] == 0 and lost == sorted(lost) and lost[-1] > 0.1
    # One step too narrow for certain.
    assert expected_dice_lost({16: 1.0, 8: 0.0}, 8) == 0.0125
