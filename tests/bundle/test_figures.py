from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from monai_xtiny.bundle.card import model_card
from monai_xtiny.bundle.figures import plot_sensitivity
from monai_xtiny.bundle.summary import advice, ladder_table, search_summary
from monai_xtiny.scores.table import Rung, ScoreTable
from monai_xtiny.selection.choice import Selection

HEADINGS = (
    "Authors", "Tags", "Model Description", "Data", "Performance", "Usage", "System Configuration",
    "Limitations", "Citation", "References",
)  # fmt: skip


@pytest.fixture(params=[1, 3], ids=["one seed", "three seeds"])
def selection(request, plan_2d) -> Selection:
    rows = tuple((2.0 + seed, 1.0) for seed in range(request.param))
    ladder = tuple(
        Rung(width, (width,) * 4, 1000 * width, 1010 * width, width / 10, rows)
        for width in (32, 16, 8, 4, 2, 1)
    )
    table = ScoreTable(
        plan_2d, ladder, tuple(range(request.param)), ("a.png", "b.png"),
        {"load": 1.0, "score": 2.0, "total": 3.0}, {},
    )  # fmt: skip
    return Selection("paper", 8, {8: 1.0}, None if request.param == 1 else 1.0, table)


def test_ladder_table_has_a_row_a_width_and_marks_the_choice(selection) -> None:
    lines = ladder_table(selection).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["width", "parameters", "GMACs", "sensitivity", "votes"]
    assert [line.split()[0] for line in lines if "selected" in line] == ["8"]


def test_search_summary_states_size_time_and_place(selection) -> None:
    text = search_summary(selection, "out/x")
    assert "selected width 8: 8,000 parameters, 4 times fewer" in text
    assert "loaded in 1.0 s, scored in 2.0 s" in text
    assert ("confidence 100%" in text) == (len(selection.table.seeds) > 1)


def test_plot_sensitivity_is_a_picture_and_repeats_byte_for_byte(tmp_path, selection) -> None:
    first = plot_sensitivity(selection, tmp_path / "a.png").read_bytes()
    assert first == plot_sensitivity(selection, tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def card(selection, labels=("background", "cell")) -> str:
    return model_card(selection, name="x_segmentation", label_names=labels)


def test_model_card_has_the_zoos_headings_and_the_ladder(selection) -> None:
    text = card(selection)
    lines = text.splitlines()
    assert lines[0] == "# x_segmentation"
    for heading in HEADINGS:
        assert f"## {heading}" in lines
    assert "| **8** | 8,000 | 0.800 |" in text
    assert "states no confidence" in text or "initialisations agree" in text


def test_model_card_makes_names_harmless(selection) -> None:
    text = card(selection, ("background", "<script>|`x`*b*"))
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\\|\\`x\\`\\*b\\*" in text


def aligned(plan, votes, confidence, threshold: float | None = 0.25) -> Selection:
    """A choice of width 8 by alignment, which wider networks than 32 do not have."""
    rng = np.random.default_rng(0)
    ladder = tuple(
        Rung(
            width, (width,) * 4, 1000 * width, 1010 * width, width / 10, ((2.0, 1.0),),
            tuple(map(tuple, rng.uniform(0.9, 1.1, (4, 2)) * width / 33)) if width <= 32 else (),
        )
        for width in (64, 32, 16, 8, 4, 2, 1)
    )  # fmt: skip
    table = ScoreTable(
        plan, ladder, (1,), ("a.png", "b.png"), {"load": 1.0, "score": 2.0, "total": 3.0}, {},
        (1, 2, 3, 4),
    )  # fmt: skip
    return Selection("alignment", 8, votes, confidence, table, threshold)


@pytest.mark.parametrize(
    ("votes", "confidence", "doubt"),
    [
        ({8: 0.79, 4: 0.21}, 0.79, "The confidence is under 80%"),
        ({}, 0.0, "Not even the widest of the compared widths keeps enough"),
        ({8: 1.0}, None, "One initialisation of a width states no confidence"),
    ],
    ids=["unsure", "too narrow", "one initialisation"],
)
def test_advice_says_what_to_do_about_low_confidence(plan_2d, votes, confidence, doubt) -> None:
    selection = aligned(plan_2d, votes, confidence)
    text = advice(selection)
    assert text.startswith(doubt)
    for what in ("--num_seeds", "next wider width, 16", "monai_xtiny verify BUNDLE"):
        assert what in text
    assert text in search_summary(selection, "out/x")
    assert text in card(selection)


def test_advice_calls_the_confidence_of_few_initialisations_rough(plan_2d) -> None:
    selection = aligned(plan_2d, {8: 1.0}, 1.0)
    few = [replace(rung, alignment=rung.alignment[:3]) for rung in selection.table.ladder]
    selection = replace(selection, table=replace(selection.table, ladder=tuple(few)))
    assert advice(selection).startswith("With 3 initialisations of a width the confidence is rough")


def test_advice_is_silent_about_a_sure_choice_and_the_published_rule(plan_2d, selection) -> None:
    assert advice(aligned(plan_2d, {8: 0.8, 4: 0.2}, 0.8)) == ""
    assert advice(selection) == ""


def test_advice_of_a_divided_vote_of_the_published_rule_is_in_the_card(selection) -> None:
    divided = replace(selection, votes={8: 0.6, 4: 0.4}, confidence=0.6)
    assert advice(divided) in card(divided)


def test_ladder_table_of_alignment_has_its_values_seeds_and_votes(plan_2d) -> None:
    lines = ladder_table(aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79)).splitlines()
    header = ["width", "parameters", "GMACs", "sensitivity", "alignment", "seeds", "votes"]
    assert lines[0].split() == header
    assert lines[4].split()[-4:] == ["4", "79%", "<-", "selected"]
    assert lines[1].split() == ["64", "64,000", "6.400", "1.5", "1"]


def test_model_card_of_alignment_states_votes_and_confidence(plan_2d) -> None:
    text = card(aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79))
    assert "Confidence: 79 % of resamples of initialisations and images agree." in text
    assert re.search(r"\| \*\*8\*\* .*\| 79 % \|", text)


def test_plot_sensitivity_of_alignment_draws_both_curves_bands_and_the_threshold(
    plan_2d, tmp_path, monkeypatch
) -> None:
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    selection = aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79)
    path = plot_sensitivity(selection, tmp_path / "a.png")
    upper, lower = figures[0].axes
    names = [text.get_text() for text in upper.get_legend().get_texts()]
    assert names == [
        "80 % of initialisations",
        "mean of 4 initialisations",
        "threshold 0.25",
    ]
    # What the rule compares with the threshold, as the table has it.
    means = [np.mean(rung.alignment) for rung in selection.table.ladder if rung.alignment]
    assert upper.lines[0].get_ydata() == pytest.approx(means)
    assert "confidence 79%" in upper.get_title()
    assert "8\n79%" in [label.get_text() for label in lower.get_xticklabels()]
    with Image.open(path) as image:
        assert image.size[1] > image.size[0] * 0.9  # two panels
