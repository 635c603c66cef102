from __future__ import annotations

from dataclasses import replace

import pytest

from monai_xtiny.selection.alignment import ALIGNMENT
from monai_xtiny.selection.paper import PAPER
from monai_xtiny.selection.rule import Budget, low_confidence, widest_below


def test_rule_that_refines_the_alignment_must_need_it() -> None:
    with pytest.raises(ValueError, match="the rule 'paper' refines the alignment"):
        replace(PAPER, refine=lambda table, cost: {})


def test_rule_that_takes_fewer_images_for_wide_widths_must_align_the_others() -> None:
    with pytest.raises(ValueError, match="the rule 'paper' takes fewer images for widths that"):
        replace(PAPER, num_wide_images=2)
    with pytest.raises(ValueError, match="num_wide_images of the rule 'alignment' is 0: give at"):
        replace(ALIGNMENT, num_wide_images=0)


@pytest.mark.parametrize(("confidence", "doubt"), [(None, ""), (0.8, ""), (0.79, "under 80%")])
def test_low_confidence_is_doubted(selection, confidence, doubt) -> None:
    text = low_confidence(replace(selection, confidence=confidence))
    assert doubt in text and bool(text) == bool(doubt)


def test_selection_knows_its_row(selection) -> None:
    assert selection.rung.max_features == selection.max_features == 8


@pytest.mark.parametrize(
    ("limits", "fitting"),
    [
        ({"max_parameters": 800}, (8, 4, 2, 1)),
        ({"max_parameters": 799}, (4, 2, 1)),
        ({"max_gmacs": 0.2}, (2, 1)),
        ({"max_parameters": 1600, "max_gmacs": 0.4}, (4, 2, 1)),
        ({"max_latency_ms": 3.0, "latencies_ms": {16: 5.0, 8: 3.0}}, (8, 4, 2, 1)),
        ({"max_latency_ms": 3.0, "latencies_ms": {8: 3.1}}, ()),
        ({}, (32, 16, 8, 4, 2, 1)),
    ],
    ids=["at the limit", "below it", "gmacs", "both", "latency", "nothing measured fits", "none"],
)
def test_fitting_widths_keep_to_every_limit(selection, limits, fitting) -> None:
    assert replace(selection, budget=Budget(8, 0, 0, **limits)).fitting_widths == fitting
    assert selection.fitting_widths == selection.table.widths


def test_widest_below_refuses_widths_that_are_all_wider(selection) -> None:
    assert widest_below(selection, (16, 4, 2)) == 4
    with pytest.raises(ValueError, match=r"widths \[32, 16\] is narrower .* 'paper', 8"):
        widest_below(selection, (16, 32))
