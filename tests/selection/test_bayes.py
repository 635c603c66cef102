from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.alignment import select_alignment
from monai_xtiny.selection.bayes import BAYES, refine_bayes, unlabeled_belief
from monai_xtiny.selection.budget import first_seeds
from monai_xtiny.selection.choice import select_width
from monai_xtiny.selection.posterior import least_loss, prior_belief
from tests.selection.tables import MEANS, noisy_table


def table_of(plan, means=MEANS) -> ScoreTable:
    return noisy_table(plan, means, 0.01, {width: first_seeds(width) for width in means})


def test_bayes_lies_between_what_images_and_what_trained_tasks_say(plan_2d) -> None:
    prior = prior_belief(plan_2d.out_channels)
    for scale in (0.2, 3.0):  # the threshold is crossed at a wide, and at a narrow width
        found = unlabeled_belief(
            table_of(plan_2d, {width: scale * mean for width, mean in MEANS.items()})
        )
        assert found.sd < prior.sd
        assert (found.mean > prior.mean) == (scale < 1)


def test_bayes_asks_for_more_width_where_there_are_more_classes(plan_2d) -> None:
    picks = [
        select_width(table_of(replace(plan_2d, out_channels=count)), "bayes").max_features
        for count in (2, 4, 20)
    ]
    assert sorted(picks) == picks and picks[0] < picks[-1]


def test_bayes_without_alignment_knows_the_classes_alone(plan_2d, selection) -> None:
    bare = selection.table
    assert unlabeled_belief(bare) == prior_belief(bare.plan.out_channels)
    with pytest.raises(ValueError, match="no alignment: score again"):
        select_width(bare, "bayes")


def test_bayes_states_the_probability_of_its_pick(plan_2d) -> None:
    table = table_of(plan_2d)
    found = select_width(table, "bayes")
    shares = unlabeled_belief(table).shares(table.widths)
    assert found.max_features == least_loss(shares)
    assert found.confidence == pytest.approx(shares[found.max_features], abs=0.001)
    assert found.confidence == found.votes[found.max_features]
    assert sum(found.votes.values()) == pytest.approx(1, abs=0.03)
    assert select_width(table, "bayes") == found


def test_bayes_is_told_apart_from_alignment(plan_2d) -> None:
    # Images alone would take 1: hardly any trained task did.
    flat = table_of(plan_2d, dict.fromkeys(MEANS, 0.9))
    values = [float(np.mean(rung.alignment)) for rung in flat.ladder if rung.alignment]
    assert select_alignment(list(MEANS), values) == 1
    assert select_width(flat, "bayes").max_features > 1


def test_refine_bayes_asks_once(plan_2d) -> None:
    cost = float
    first = noisy_table(plan_2d, MEANS, 0.1, {})
    wanted = refine_bayes(first, cost)
    assert wanted and set(wanted) == set(MEANS)
    assert refine_bayes(noisy_table(plan_2d, MEANS, 0.1, dict(wanted)), cost) == {}


def test_bayes_doubts_where_not_even_the_neighbors_are_likely(plan_2d) -> None:
    certain = replace(select_width(table_of(plan_2d), "bayes"), max_features=8)
    found = replace(certain, votes={16: 0.2, 8: 0.4, 4: 0.2, 2: 0.2})
    assert BAYES.doubt(found) == ""
    spread = replace(found, votes={found.max_features: 0.5, 1: 0.5}, max_features=16)
    assert "the right width is not even a neighbor" in BAYES.doubt(spread)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_bayes_among_some_widths_takes_the_one_of_the_least_loss(plan_2d, scale) -> None:
    table = table_of(plan_2d, {width: scale * mean for width, mean in MEANS.items()})
    free = select_width(table, "bayes")
    shares = unlabeled_belief(table).shares(table.widths)
    for place in range(len(table.widths)):
        among = table.widths[place:]
        found = select_width(table, "bayes", among=among)
        assert found.max_features == least_loss(shares, among=among)
        assert found.confidence == found.votes.get(found.max_features, 0.0)
        # The loss is convex in log2 of the width: the nearest that is allowed is the best.
        assert found.max_features == min(free.max_features, among[0])
    among = (64, 1)
    assert select_width(table, "bayes", among=among).max_features == least_loss(shares, among=among)
