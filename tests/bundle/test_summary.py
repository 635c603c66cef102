from __future__ import annotations

from dataclasses import replace

import pytest

from monai_xtiny.bundle.summary import (
    advice,
    budget_sentence,
    comparison,
    ladder_table,
    search_summary,
)
from monai_xtiny.selection.rule import Budget
from tests.bundle.choices import aligned, card, shortened


def test_ladder_table_has_a_row_a_width_and_marks_the_choice(paper_choice) -> None:
    lines = ladder_table(paper_choice).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["width", "parameters", "GMACs", "sensitivity", "votes"]
    assert [line.split()[0] for line in lines if "selected" in line] == ["8"]


def test_search_summary_states_size_time_and_place(paper_choice) -> None:
    text = search_summary(paper_choice, "out/x")
    assert "selected width 8: 8,000 parameters, 4 times fewer" in text
    assert "loaded in 1.0 s, scored in 2.0 s" in text
    assert ("confidence 100%" in text) == (len(paper_choice.table.seeds) > 1)


def test_summary_and_card_say_that_images_share_an_orientation(paper_choice) -> None:
    oriented = replace(paper_choice, table=replace(paper_choice.table, shared_orientation=0.304))
    words = "he images share an orientation (0.30): training does not mirror them, and rotates them"
    assert f"\nt{words}" in search_summary(oriented, "out/x")
    assert f" T{words}" in card(oriented)
    for text in (search_summary(paper_choice, "out/x"), card(paper_choice)):
        assert "share an orientation" not in text


@pytest.mark.parametrize(
    ("votes", "confidence", "doubt"),
    [
        ({8: 0.79, 4: 0.21}, 0.79, "The confidence is under 80%"),
        ({}, 0.0, "Not even the widest of the compared widths keeps enough"),
        ({8: 1.0}, None, "One initialization of a width states no confidence"),
    ],
    ids=["unsure", "too narrow", "one initialization"],
)
def test_advice_says_what_to_do_about_low_confidence(plan_2d, votes, confidence, doubt) -> None:
    selection = aligned(plan_2d, votes, confidence)
    text = advice(selection)
    assert text.startswith(doubt)
    for what in ("--num_seeds", "next wider width, 16", "monai_xtiny verify BUNDLE"):
        assert what in text
    assert text in search_summary(selection, "out/x")
    assert text in card(selection)


def test_advice_calls_the_confidence_of_few_initializations_rough(plan_2d) -> None:
    selection = aligned(plan_2d, {8: 1.0}, 1.0)
    few = [replace(rung, alignment=rung.alignment[:3]) for rung in selection.table.ladder]
    selection = replace(selection, table=replace(selection.table, ladder=tuple(few)))
    assert advice(selection).startswith("With 3 initializations of a width the confidence is rough")


def test_advice_is_silent_about_a_sure_choice_and_the_published_rule(plan_2d, paper_choice) -> None:
    assert advice(aligned(plan_2d, {8: 0.8, 4: 0.2}, 0.8)) == ""
    assert advice(paper_choice) == ""


def test_ladder_table_of_alignment_has_its_values_seeds_and_votes(plan_2d) -> None:
    lines = ladder_table(aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79)).splitlines()
    header = ["width", "parameters", "GMACs", "sensitivity", "alignment", "seeds", "votes"]
    assert lines[0].split() == header
    assert lines[4].split()[-4:] == ["4", "79%", "<-", "selected"]
    assert lines[1].split() == ["64", "64,000", "6.400", "1.5", "1"]


def test_budget_sentence_says_what_keeping_to_the_limits_costs(plan_2d) -> None:
    choice = aligned(plan_2d, {16: 0.6, 8: 0.4}, 0.4)
    assert budget_sentence(choice) == ""
    moved = replace(choice, budget=Budget(16, 0.0123, 0.0041, max_parameters=9000, max_gmacs=1.5))
    text = budget_sentence(moved)
    assert text == (
        "budget of at most 9,000 parameters, 1.5 GMACs: width 8 in place of 16, expected to lose "
        "0.012 Dice beyond the tolerance of 0.01 (0.004 with width 16)"
    )
    assert text in search_summary(moved, "out/x")
    assert f"The choice keeps to a {text}." in card(moved)
    # Where the rule's width is within it too, a race chose another.
    raced = replace(moved, budget=replace(moved.budget, max_parameters=10**6, max_gmacs=None))
    assert budget_sentence(raced) == (
        "budget of at most 1,000,000 parameters: width 8 is within it, and expected to lose 0.012 "
        "Dice beyond the tolerance of 0.01"
    )


def test_budget_sentence_names_the_latencies_that_were_measured(plan_2d) -> None:
    choice = aligned(plan_2d, {8: 0.9}, 0.9)
    budget = Budget(8, 0.004, 0.004, max_latency_ms=5, latencies_ms={8: 3.14159})
    assert budget_sentence(replace(choice, budget=budget)) == (
        "budget of at most 5 ms per patch in ONNX Runtime on the CPU (measured: 3.14 ms with width "
        "8): width 8 is within it, and expected to lose 0.004 Dice beyond the tolerance of 0.01"
    )


def test_advice_recommends_no_width_outside_of_the_budget(plan_2d) -> None:
    unsure = aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79)
    roomy, tight = (
        replace(unsure, budget=Budget(8, 0.0, 0.0, max_parameters=count)) for count in (16000, 8000)
    )
    assert "next wider width, 16" in advice(roomy)
    assert "wider" not in advice(tight) and "verify" in advice(tight)
    # Where the budget decided, its own sentence says what that costs.
    assert advice(replace(unsure, budget=Budget(16, 0.1, 0.0, max_parameters=8000))) == ""


def test_comparison_says_on_which_images_wide_widths_were_scored(plan_2d, paper_choice) -> None:
    selection = aligned(plan_2d, {8: 1.0}, 1.0)
    assert comparison(selection.table) == comparison(paper_choice.table) == ""
    table = shortened(selection).table
    assert comparison(table) == (
        "Sensitivity is that on the first of 2 images: widths over 32 were scored on no more."
    )
    wider = [replace(rung, sensitivity=((3.0,) * 3,)) for rung in table.ladder]
    wider[0] = replace(wider[0], sensitivity=((1.0, 2.0),))
    three = replace(table, ladder=tuple(wider), images=("a", "b", "c"))
    assert "that on the first 2 of 3 images: widths over 32" in comparison(three)


def test_ladder_table_compares_widths_on_the_same_images_and_says_so(plan_2d) -> None:
    selection = aligned(plan_2d, {8: 1.0}, 1.0)
    lines = ladder_table(shortened(selection)).splitlines()
    assert [line.split()[3] for line in lines[1:8]] == ["4", *["2"] * 6]  # of 2.0 and 1.0
    assert lines[8:] == [comparison(shortened(selection).table)]
    assert len(ladder_table(selection).splitlines()) == 8
