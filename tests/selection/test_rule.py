from __future__ import annotations

from dataclasses import replace

import pytest

from monai_xtiny.selection.alignment import ALIGNMENT
from monai_xtiny.selection.paper import PAPER
from monai_xtiny.selection.rule import low_confidence


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
