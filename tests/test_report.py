from __future__ import annotations

import pytest
from PIL import Image

from monai_xtiny.export import templates_dir
from monai_xtiny.report import ladder_table, model_card, plot_sensitivity, search_summary
from monai_xtiny.search import Rung, ScoreTable
from monai_xtiny.selection import Selection

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
    return model_card(
        selection, name="x_segmentation", label_names=labels, kind="images",
        templates=templates_dir(),
    )  # fmt: skip


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
