from __future__ import annotations

import re
from dataclasses import replace

import pytest

from monai_xtiny.bundle.card import (
    CHOICE_PARTS,
    MEASURED_PARTS,
    check_marks,
    model_card,
    renewed_card,
)
from monai_xtiny.bundle.results import Evaluation
from monai_xtiny.bundle.summary import advice, comparison
from monai_xtiny.selection.rule import Budget
from tests.bundle.choices import HEADINGS, RACE, aligned, card, shortened

EVALUATION = Evaluation(("a", "b"), ((0.6,), (0.8,)), ((3.0,), (1.0,)))
PARTS = (*CHOICE_PARTS, *MEASURED_PARTS)


def rendered(selection, **options) -> str:
    names = ("background", "cell")
    return model_card(selection, name="x_segmentation", label_names=names, **options)


def test_model_card_marks_what_commands_renew(selection) -> None:
    text = rendered(selection)
    check_marks(text)
    for part in PARTS:
        assert text.count(f"<!-- xtiny:{part} -->") == text.count(f"<!-- /xtiny:{part} -->") == 1


def test_renewed_card_changes_the_named_parts_alone(selection) -> None:
    text = rendered(selection).replace("The owners of this bundle.", "We did.")
    measured = rendered(selection, evaluation=EVALUATION, num_epochs=3)
    renewed = renewed_card(text, measured, MEASURED_PARTS)
    assert (
        "| cell | 2 | 0.700 (0.600 to 0.800) | 2.00 (1.00 to 3.00) |" in renewed
        and "after 3 epochs" in renewed
    )
    assert "Not measured yet" not in renewed and "We did." in renewed
    # And back again: what was between the marks is all that had changed.
    assert renewed_card(renewed, rendered(selection), MEASURED_PARTS) == text


def test_renewed_card_moves_the_choice_and_says_who_moved_it(selection) -> None:
    text = rendered(selection).replace("## Tags", "## Our own heading")
    wider = replace(selection, max_features=16)
    renewed = renewed_card(text, rendered(wider, former_width=8), PARTS)
    assert "capped at **16**" in renewed and "| **16** |" in renewed
    assert "moved the choice from width 8 to width 16" in renewed
    assert "rests on images alone" not in renewed and "## Our own heading" in renewed


@pytest.mark.parametrize("damage", ["opening", "closing", "twice", "crossed"])
def test_renewed_card_refuses_a_card_that_lost_a_mark(selection, damage) -> None:
    text = rendered(selection)
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
    assert text.count("<!-- xtiny:performance -->") == text.count("<!-- /xtiny:weights -->") == 1


def test_model_card_has_the_zoos_headings_and_the_ladder(paper_choice) -> None:
    text = card(paper_choice)
    lines = text.splitlines()
    assert lines[0] == "# x_segmentation"
    for heading in HEADINGS:
        assert f"## {heading}" in lines
    assert "| **8** | 8,000 | 0.800 |" in text
    assert "states no confidence" in text or "initializations agree" in text


def test_model_card_makes_names_harmless(paper_choice) -> None:
    text = card(paper_choice, ("background", "<script>|`x`*b*"))
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\\|\\`x\\`\\*b\\*" in text


def test_advice_of_a_divided_vote_of_the_published_rule_is_in_the_card(paper_choice) -> None:
    divided = replace(paper_choice, votes={8: 0.6, 4: 0.4}, confidence=0.6)
    assert advice(divided) in card(divided)


def test_model_card_of_alignment_states_votes_and_confidence(plan_2d) -> None:
    text = card(aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79))
    assert "Confidence: 79 % of resamples of initializations and images agree." in text
    assert re.search(r"\| \*\*8\*\* .*\| 79 % \|", text)


def test_model_card_tells_of_a_race(plan_2d) -> None:
    choice = aligned(plan_2d, {16: 0.71, 8: 0.29}, 0.71)
    text = card(replace(choice, max_features=16, race=RACE))
    assert (
        "Brief trainings on labeled cases (120 updates each, 12 cases held out) then moved the "
        "choice from width 8 to width 16: `verification.json` has them."
    ) in text
    assert "| 16 | 0.9000 | chosen | |\n" in text
    assert "| 8 | 0.8500 | -0.0500 | -0.0700 to -0.0300 |\n" in text
    assert "With a probability of 71 % this width is the smallest that suffices" in text
    assert "The intervals tell it from its neighbors." in text and "agree." not in text
    assert "rests on images alone" not in text
    check_marks(text)
    kept = card(replace(choice, race=replace(RACE, searched=8, is_decided=False)))
    assert "then kept width 8" in kept and "do not tell it from its neighbors" in kept


def test_model_card_says_on_which_images_wide_widths_were_scored(plan_2d) -> None:
    selection = aligned(plan_2d, {8: 1.0}, 1.0)
    text = card(shortened(selection))
    assert f"|\n\n{comparison(shortened(selection).table)}\n\nConfidence: " in text
    assert "| 64 | 64,000 | 6.400 | 4 |" in text and "| 32 | 32,000 | 3.200 | 2 |" in text
    assert "no more" not in card(selection)
    assert "%\n\nConf" in card(selection).replace(" |", "")


def test_model_card_keeps_a_name_in_its_line(paper_choice) -> None:
    text = card(paper_choice, ("background", "cell\n# Heading\u2028<b>"))
    assert "cell # Heading \\<b\\>" in text
    assert "# Heading" not in [line.strip() for line in text.splitlines()]


def test_model_card_tells_of_a_budget_where_the_choice_is_described(selection) -> None:
    limited = replace(selection, budget=Budget(16, 0.02, 0.001, max_parameters=900))
    sentence = "The choice keeps to a budget of at most 900 parameters: width 8 in place of 16"
    text = rendered(limited)
    description = text.split("<!-- xtiny:description -->")[1].split("<!-- /xtiny")[0]
    assert sentence in description and "budget" not in rendered(selection)
    assert renewed_card(text, rendered(selection), PARTS) == rendered(selection)
