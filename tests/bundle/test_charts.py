from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest

from monai_xtiny.bundle.charts import choice_charts, learning_chart, race_chart
from monai_xtiny.bundle.records import LearningCurve
from tests.bundle.choices import RACE, aligned

CURVE = LearningCurve((1, 2, 3), (0.9, 0.5, 0.4), (None, 0.6, None))


@pytest.fixture
def charts(plan_2d):
    choice = replace(aligned(plan_2d, {8: 1.0}, 1.0), race=replace(RACE, searched=8))
    return [*choice_charts(choice), race_chart(choice), learning_chart(CURVE)]


def test_charts_repeat_byte_for_byte_and_leave_matplotlib_as_it_was(plan_2d) -> None:
    choice, before = aligned(plan_2d, {8: 1.0}, 1.0), dict(matplotlib.rcParams)
    assert choice_charts(choice) == choice_charts(choice)
    assert dict(matplotlib.rcParams) == before


def test_charts_are_xml_with_words_and_no_name_twice(charts) -> None:
    names = []
    for chart in charts:
        root = ElementTree.fromstring(str(chart.svg))
        assert root.get("role") == "img" and root.get("aria-label") == chart.caption
        own = [item.get("id") for item in root.iter() if item.get("id")]
        links = set(re.findall(r"#([\w-]+)\"|url\(#([\w-]+)\)", str(chart.svg)))
        assert {one or other for one, other in links} == set(own)
        names += own
    assert len(names) == len(set(names)) > 10


def test_charts_take_the_pages_colors(charts) -> None:
    for chart in charts:
        found = set(re.findall(r"(?:stroke|fill): ([^;\"]+)", str(chart.svg)))
        assert found - {"none"} <= {f"var(--{name})" for name in (
            "ink", "muted", "rule", "accent", "mark", "paper",
        )}  # fmt: skip


def test_choice_charts_mark_the_choice_and_the_threshold(plan_2d) -> None:
    first, second = choice_charts(aligned(plan_2d, {8: 1.0}, 1.0))
    assert "threshold 0.25" in first.svg and "chosen width 8" in first.svg
    assert "threshold" not in second.svg and "chosen width 8" in second.svg


def test_learning_chart_without_a_validation_shows_the_loss_alone() -> None:
    chart = learning_chart(replace(CURVE, dice=(None,) * 3))
    assert chart is not None and "training loss" in chart.svg
    assert "validation Dice" not in chart.svg
    assert learning_chart(None) is None
