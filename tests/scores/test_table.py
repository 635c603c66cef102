from __future__ import annotations

import json
from dataclasses import replace

import pytest

from monai_xtiny.scores.table import Rung, ScoreTable, table_from_dict, table_to_dict


@pytest.fixture
def table(plan_2d) -> ScoreTable:
    """Six widths, one initialization, three images, and scores of which every digit counts."""
    ladder = tuple(
        Rung(
            width, (width,) * 4, 100 * width, 101 * width, width / 7,
            ((0.1 + 0.2, 1e-300, width / 3),), ((1 / 3, 0.25, 1 / (width + 2)),),
        )
        for width in (32, 16, 8, 4, 2, 1)
    )  # fmt: skip
    seconds, environment = {"load": 0.1, "score": 1 / 3, "total": 0.1 + 1 / 3}, {"torch": "2"}
    return ScoreTable(plan_2d, ladder, (369,), ("a", "b", "c"), seconds, environment, (369,))


def test_table_survives_json(table) -> None:
    assert table_from_dict(json.loads(json.dumps(table_to_dict(table)))) == table


def test_table_keeps_the_shared_orientation_where_it_was_measured(table) -> None:
    assert "shared_orientation" not in table_to_dict(table)
    alike = replace(table, shared_orientation=0.3)
    assert table_from_dict(json.loads(json.dumps(table_to_dict(alike)))) == alike
    for value, is_oriented in ((None, False), (-1.0, False), (0.09, False), (0.11, True)):
        assert replace(table, shared_orientation=value).is_oriented == is_oriented


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -2.1, 10**400, True, "upright", [0.3]], ids=type
)
def test_table_from_dict_refuses_an_orientation_that_cannot_be(table, value) -> None:
    with pytest.raises(ValueError, match="no table of scores"):
        table_from_dict({**table_to_dict(table), "shared_orientation": value})


@pytest.mark.parametrize("field", ["plan", "ladder", "seeds", "images", "seconds"])
def test_table_from_dict_names_the_missing_field(table, field) -> None:
    content = table_to_dict(table)
    del content[field]
    with pytest.raises(ValueError, match=field):
        table_from_dict(content)


def test_table_from_dict_refuses_alignment_of_unknown_initializations(table) -> None:
    content = table_to_dict(table)
    content["ladder"][2]["alignment"] *= 2
    with pytest.raises(ValueError, match="width 8 has 2 rows of alignment and the table 1"):
        table_from_dict(content)


def test_table_from_dict_refuses_missing_scores(table) -> None:
    content = table_to_dict(table)
    content["ladder"][2]["sensitivity"] = [[1.0]]
    with pytest.raises(ValueError, match="width 8 lacks scores: expected 1 seeds of 3 images"):
        table_from_dict(content)


def test_table_from_dict_refuses_widths_that_do_not_descend(table) -> None:
    content = table_to_dict(table)
    content["ladder"] = content["ladder"][::-1]
    with pytest.raises(ValueError, match=r"the ladder \(1, 2, .* must descend"):
        table_from_dict(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "a lot"], ids=str)
def test_table_from_dict_refuses_a_score_that_is_no_number(table, value) -> None:
    content = table_to_dict(table)
    content["ladder"][1]["sensitivity"] = [[1.0, value, 2.0]]
    with pytest.raises(ValueError, match="not finite|no table of scores .*'a lot'"):
        table_from_dict(content)


@pytest.mark.parametrize("count", [0, -1, 10**300])
@pytest.mark.parametrize("field", ["max_features", "num_parameters", "num_parameters_nnunet"])
def test_table_from_dict_refuses_networks_without_a_size(selection, field, count) -> None:
    content = table_to_dict(selection.table)
    content["ladder"][0 if count > 0 else -1][field] = count
    with pytest.raises(ValueError, match="that no network has: score again"):
        table_from_dict(content)


@pytest.fixture
def shortened(table) -> ScoreTable:
    """The same below a width of 64, which is not aligned and was scored on the first two images."""
    wide = replace(table.ladder[0], max_features=64, sensitivity=((4.0, 8.0),), alignment=())
    return replace(table, ladder=(wide, *table.ladder))


def test_table_of_wide_widths_scored_on_fewer_images_survives_json(shortened) -> None:
    assert table_from_dict(json.loads(json.dumps(table_to_dict(shortened)))) == shortened


def test_compared_is_the_sensitivity_on_the_images_that_every_width_was_scored_on(
    table, shortened
) -> None:
    rung = table.ladder[0]
    assert table.num_compared == 3
    assert table.compared(rung) == rung.sensitivity
    assert table.curve(0)[0] == sum(rung.sensitivity[0]) / 3
    assert shortened.num_compared == 2
    assert shortened.compared(rung) == (rung.sensitivity[0][:2],)
    assert shortened.curve(0)[:2] == (6.0, sum(rung.sensitivity[0][:2]) / 2)


@pytest.mark.parametrize(
    ("index", "rows"),
    [(0, [[]]), (0, [[1.0] * 4]), (0, [[1.0] * 2] * 2), (0, []), (1, [[1.0] * 2]), (3, [[1.0]])],
    ids=["no image", "too many images", "too many seeds", "no seed", "aligned", "narrow"],
)
def test_table_from_dict_refuses_other_numbers_of_images(shortened, index, rows) -> None:
    content = table_to_dict(shortened)
    content["ladder"][index]["sensitivity"] = rows
    width = shortened.widths[index]
    with pytest.raises(ValueError, match=f"width {width} lacks scores: expected 1 seeds of 3 im"):
        table_from_dict(content)


def test_table_from_dict_refuses_rows_of_different_lengths(shortened) -> None:
    content = table_to_dict(replace(shortened, seeds=(369, 370)))
    for row in content["ladder"]:
        row["sensitivity"] = [*row["sensitivity"], *row["sensitivity"]]
    table_from_dict(content)
    content["ladder"][0]["sensitivity"] = [[1.0, 2.0], [1.0]]
    with pytest.raises(ValueError, match="width 64 lacks scores: expected 2 seeds of 3 images"):
        table_from_dict(content)


def test_table_from_dict_refuses_fewer_images_where_no_width_is_aligned(shortened) -> None:
    content = table_to_dict(shortened)
    for row in content["ladder"]:
        row.pop("alignment", None)
    with pytest.raises(ValueError, match="width 64 lacks scores"):
        table_from_dict(content)


def test_table_from_dict_refuses_fewer_images_below_an_aligned_width(shortened) -> None:
    content = table_to_dict(shortened)
    del content["ladder"][3]["alignment"]
    content["ladder"][3]["sensitivity"] = [[1.0]]
    with pytest.raises(ValueError, match="width 8 lacks scores"):
        table_from_dict(content)
