from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from monai_xtiny.bundle.figures import Plane, plot_overlay, plot_sensitivity
from tests.bundle.choices import RACE, aligned, shortened


def test_plot_sensitivity_is_a_picture_and_repeats_byte_for_byte(tmp_path, paper_choice) -> None:
    first = plot_sensitivity(paper_choice, tmp_path / "a.png").read_bytes()
    assert first == plot_sensitivity(paper_choice, tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Every figure that is saved."""
    found: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k))
    )
    return found


def test_plot_sensitivity_of_alignment_draws_both_curves_bands_and_the_threshold(
    plan_2d, tmp_path, figures
) -> None:
    selection = aligned(plan_2d, {8: 0.79, 4: 0.21}, 0.79)
    path = plot_sensitivity(selection, tmp_path / "a.png")
    upper, lower = figures[0].axes
    names = [text.get_text() for text in upper.get_legend().get_texts()]
    assert names == [
        "80 % of initializations",
        "mean of 4 initializations",
        "threshold 0.25",
    ]
    # What the rule compares with the threshold, as the table has it.
    means = [np.mean(rung.alignment) for rung in selection.table.ladder if rung.alignment]
    assert upper.lines[0].get_ydata() == pytest.approx(means)
    assert "confidence 79%" in upper.get_title()
    assert "8\n79%" in [label.get_text() for label in lower.get_xticklabels()]
    with Image.open(path) as image:
        assert image.size[1] > image.size[0] * 0.9  # two panels


def test_plot_sensitivity_of_a_race_draws_dice_with_intervals(plan_2d, tmp_path, figures) -> None:
    choice = replace(aligned(plan_2d, {16: 0.7}, 0.7), max_features=16, race=RACE)
    plot_sensitivity(choice, tmp_path / "a.png")
    race = figures[0].axes[0]
    assert len(figures[0].axes) == 3
    assert race.lines[0].get_ydata() == pytest.approx([0.91, 0.9, 0.85])
    (bars,) = race.collections
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx(pair) for pair in ([0.902, 0.918], [0.9, 0.9], [0.83, 0.87])]


def test_plot_sensitivity_of_a_race_of_one_width_speaks_of_no_intervals(
    plan_2d, tmp_path, figures
) -> None:
    selection = replace(aligned(plan_2d, {16: 0.7}, 0.7), max_features=16)
    one = tuple(row for row in RACE.widths if row.max_features == 16)
    for race in (RACE, replace(RACE, widths=one)):
        plot_sensitivity(replace(selection, race=race), tmp_path / "a.png")
    names = [figure.axes[0].get_legend().get_texts()[0].get_text() for figure in figures]
    assert names == [f"{names[1]}, 95 % intervals", names[1]]
    assert "interval" not in names[1]


def test_plot_sensitivity_compares_widths_on_the_same_images_and_says_on_which(
    plan_2d, tmp_path, figures
) -> None:
    selection = aligned(plan_2d, {8: 1.0}, 1.0)
    for choice in (selection, shortened(selection)):
        plot_sensitivity(choice, tmp_path / "a.png")
    whole, short = (figure.axes[-1] for figure in figures)
    assert short.lines[0].get_ydata() == pytest.approx([4.0, *[2.0] * 6])
    assert short.get_ylabel() == f"{whole.get_ylabel()}\n(on the first of 2 images)"


def test_plot_overlay_refuses_cases_without_a_label(tmp_path) -> None:
    plane = Plane("a", *(np.zeros((4, 4)) for _ in range(3)))
    with pytest.raises(ValueError, match="no case has a label"):
        plot_overlay([plane], [float("nan")], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
