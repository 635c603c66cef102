from __future__ import annotations

import pytest

from monai_xtiny.bundle.card import (
    CHOICE_PARTS,
    MEASURED_PARTS,
    check_marks,
    model_card,
    renewed_card,
)
from monai_xtiny.bundle.results import Evaluation

EVALUATION = Evaluation(("a", "b"), ((0.6,), (0.8,)), ((3.0,), (1.0,)))
PARTS = (*CHOICE_PARTS, *MEASURED_PARTS)


def card(selection, **options) -> str:
    names = ("background", "cell")
    return model_card(selection, name="x_segmentation", label_names=names, **options)


def test_model_card_marks_what_commands_renew(selection) -> None:
    text = card(selection)
    check_marks(text)
    for part in PARTS:
        assert text.count(f"<!-- xtiny:{part} -->") == text.count(f"<!-- /xtiny:{part} -->") == 1


def test_renewed_card_changes_the_named_parts_alone(selection) -> None:
    text = card(selection).replace("The owners of this bundle.", "We did.")
    measured = card(selection, evaluation=EVALUATION, num_epochs=3)
    renewed = renewed_card(text, measured, MEASURED_PARTS)
    assert "| cell | 0.7000 | 2.00 |" in renewed and "after 3 epochs" in renewed
    assert "Not measured yet" not in renewed and "We did." in renewed
    # And back again: what was between the marks is all that had changed.
    assert renewed_card(renewed, card(selection), MEASURED_PARTS) == text


def test_renewed_card_moves_the_choice_and_says_who_moved_it(selection) -> None:
    from dataclasses import replace

    text = card(selection).replace("## Tags", "## Our own heading")
    wider = replace(selection, max_features=16)
    renewed = renewed_card(text, card(wider, former_width=8), PARTS)
    assert "capped at **16**" in renewed and "| **16** |" in renewed
    assert "moved the choice from width 8 to width 16" in renewed
    assert "rests on images alone" not in renewed and "## Our own heading" in renewed


@pytest.mark.parametrize("damage", ["opening", "closing", "twice", "crossed"])
def test_renewed_card_refuses_a_card_that_lost_a_mark(selection, damage) -> None:
    text = card(selection)
    opening, closing = "<!-- xtiny:performance -->", "<!-- /xtiny:performance -->"
    broken = {
        "opening": text.replace(opening, ""),
        "closing": text.replace(closing, ""),
        "twice": text + f"{opening}\n{closing}\n",
        "crossed": text.replace(opening, "#").replace(closing, opening).replace("#", closing, 1),
    }[damage]
    with pytest.raises(
        ValueError, match=r"the card docs/README\.md needs the line '<!-- xtiny:per"
    ):
        renewed_card(broken, text, MEASURED_PARTS)
    with pytest.raises(ValueError, match=r"the card docs/README\.md needs the line"):
        check_marks(broken)


def test_model_card_of_a_user_cannot_place_a_mark(selection) -> None:
    names = ("background", "<!-- xtiny:performance -->")
    text = model_card(selection, name="<!-- /xtiny:weights -->", label_names=names)
    check_marks(text)
