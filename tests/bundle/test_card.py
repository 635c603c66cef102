from __future__ import annotations

import re
from dataclasses import replace

from monai_xtiny.bundle.summary import advice
from tests.bundle.choices import HEADINGS, aligned, card


def test_model_card_has_the_zoos_headings_and_the_ladder(paper_choice) -> None:
    text = card(paper_choice)
    lines = text.splitlines()
    assert lines[0] == "# x_segmentation"
    for heading in HEADINGS:
        assert f"## {heading}" in lines
    assert "| **8** | 8,000 | 0.800 |" in text
    assert "states no confidence" in text or "initialisations agree" in text


def test_model_card_makes_names_harmless(paper_choice) -> None:
    text = card(paper_choice, ("background", "<script>|`x`*b*"))
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\\|\\`x\\`\\*b\\*" in text


def test_advice_of_a_divided_vote_of_the_published_rule_is_in_the_card(paper_choice) -> None:
    divided = replace(paper_choice, votes={8: 0.6, 4: 0.4}, confidence=0.6)
    assert advice(divided) in card(divided)


def test_model_card_of_alignment_states_votes_and_confidence(plan_2d) -> None:
    text = card(aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79))
    assert "Confidence: 79 % of resamples of initialisations and images agree." in text
    assert re.search(r"\| \*\*8\*\* .*\| 79 % \|", text)
