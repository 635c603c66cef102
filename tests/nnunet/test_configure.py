from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.nnunet import configure as module
from monai_xtiny.nnunet.configure import Configured, configure_data_set, plan_nnunet_data_set
from monai_xtiny.scores.table import ScoreTable
from monai_xtiny.selection.alignment import ALIGNMENT
from monai_xtiny.selection.paper import select_paper
from tests.nnunet.planned import write_planned


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.delenv("nnUNet_raw", raising=False)


def configured(**options) -> Configured:
    planned = plan_nnunet_data_set(4)
    return configure_data_set(planned, method="paper", progress=False, **options)


@pytest.mark.search
def test_configure_data_set_adds_the_chosen_width_and_keeps_its_scores(tmp_path) -> None:
    folder = write_planned(tmp_path)
    before = (folder / "nnUNetPlans.json").read_bytes()
    found = configured()
    width = found.selection.max_features
    assert (found.name, found.is_new) == (f"2d_xtiny{width}", True)
    added = json.loads((folder / "nnUNetPlans.json").read_text())["configurations"][found.name]
    features = added["architecture"]["arch_kwargs"]["features_per_stage"]
    assert features == [min(width, full) for full in (32, 64, 128, 256)]
    assert read_search(found.record) == found.selection
    assert found.selection.table.images == ("case0", "case1", "case2")
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json", "nnUNetPlans.json", "nnUNetPlans.json.before_xtiny", "nnUNetPlans_2d",
        f"nnUNetPlans_2d_xtiny{width}_search.json",
    ]  # fmt: skip
    assert (folder / "nnUNetPlans.json.before_xtiny").read_bytes() == before
    assert f"nnUNetv2_train 4 {found.name} 0\n" in found.summary

    once = (folder / "nnUNetPlans.json").read_bytes()
    again = configured()
    assert (again.name, again.is_new) == (found.name, False)
    assert (folder / "nnUNetPlans.json").read_bytes() == once
    assert again.selection.table.ladder == found.selection.table.ladder


@pytest.mark.search
def test_the_published_setting_is_one_seed_all_images_and_the_published_rule(tmp_path) -> None:
    write_planned(tmp_path)
    found = configured(num_images="all")
    table = found.selection.table
    assert (table.seeds, len(table.images)) == ((369,), 3)
    curve = [float(np.mean(rung.sensitivity)) for rung in table.ladder]
    assert found.selection.max_features == select_paper(table.widths, curve)


@pytest.mark.search
def test_configure_data_set_scores_wide_widths_on_as_many_images_as_the_rule_asks_for(
    tmp_path,
) -> None:
    write_planned(tmp_path)
    found = configure_data_set(
        plan_nnunet_data_set(4), method="alignment", num_seeds=1, progress=False
    )
    table = read_search(found.record).table
    assert (len(table.images), table.num_compared) == (3, ALIGNMENT.num_wide_images)


@pytest.mark.search
def test_configure_data_set_keeps_to_a_budget(tmp_path) -> None:
    folder = write_planned(tmp_path)
    free = configured().selection
    wide = [rung for rung in free.table.ladder if rung.max_features > 1]
    narrow = wide[-1]
    assert narrow.max_features < free.max_features
    found = configured(max_parameters=narrow.num_parameters, num_seeds=1)
    assert found.selection.max_features == narrow.max_features
    assert found.selection.budget.searched == free.max_features
    assert read_search(found.record).budget == found.selection.budget
    assert f"width {narrow.max_features} in place of {free.max_features}" in found.summary
    plans = (folder / "nnUNetPlans.json").read_bytes()
    timed = configured(max_latency_ms=1.0, measure=lambda plan, width: 0.5 * width).selection
    assert (timed.max_features, timed.budget.latencies_ms[2]) == (2, 1.0)
    with pytest.raises(ValueError, match="--max_parameters is 10, and the narrowest network"):
        configured(max_parameters=10)
    assert (folder / "nnUNetPlans.json").read_bytes() == plans


@pytest.mark.search
def test_a_transposition_changes_the_slices_and_not_what_is_made_of_them(tmp_path) -> None:
    write_planned(tmp_path / "a")
    write_planned(tmp_path / "b", change=lambda plans: plans.update(transpose_forward=[1, 0, 2]))
    found = []
    for name in "ab":
        # The arrays are as nnU-Net stores them: the slices are along the first axis of both.
        planned = plan_in(tmp_path / name)
        found.append(configure_data_set(planned, method="paper", progress=False))
    assert [item.planned.plan.slice_axis for item in found] == [2, 1]
    assert found[0].selection.table.ladder == found[1].selection.table.ladder


@pytest.mark.search
def test_a_search_that_was_interrupted_goes_on(tmp_path, monkeypatch) -> None:
    folder = write_planned(tmp_path)
    journal = folder / ".nnUNetPlans_2d.search.jsonl"
    before = (folder / "nnUNetPlans.json").read_bytes()
    expected = plan_and_interrupt(monkeypatch)
    assert len(journal.read_text().splitlines()) == 1 + len(expected.ladder)
    assert (folder / "nnUNetPlans.json").read_bytes() == before
    monkeypatch.setattr("monai_xtiny.search.run.score_side_by_side", score_nothing)
    assert configured().selection.table.ladder == expected.ladder
    assert not journal.exists()


def plan_and_interrupt(monkeypatch) -> ScoreTable:
    """What a search has scored that ends before it chooses."""
    seen: list[ScoreTable] = []

    def interrupt(table: ScoreTable, *_: object, **__: object) -> None:
        seen.append(table)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "select_within", interrupt)
        with pytest.raises(KeyboardInterrupt):
            configured()
    return seen[0]


def score_nothing(scorer: object, units: list, journal: object) -> list:
    """Refuse to score anything again."""
    assert units == []
    return []


def plan_in(folder: Path) -> module.PlannedData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(folder))
        return plan_nnunet_data_set(4)


def test_what_is_searched_is_said_in_two_lines(tmp_path) -> None:
    write_planned(tmp_path, channels=2)
    assert plan_nnunet_data_set(4).describe() == (
        "Dataset004_Hippocampus, configuration 2d: 3 preprocessed cases, 2 channels, 3 classes\n"
        "patch 24 x 32 voxels, 4 stages, at most 256 features"
    )


@pytest.mark.parametrize(
    "scheme",
    ["CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"],
)
def test_plan_nnunet_data_set_takes_every_normalization_of_nnunet(tmp_path, scheme) -> None:
    def change(plans) -> None:
        plans["configurations"]["2d"].update(
            normalization_schemes=[scheme], use_mask_for_norm=[True]
        )

    write_planned(tmp_path, change=change)
    assert len(plan_nnunet_data_set(4).cases) == 3


def set_in_2d(**settings):
    return lambda plans: plans["configurations"]["2d"].update(settings)


def set_in_network(**arguments):
    return lambda plans: plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(
        arguments
    )


def take_residual_encoder(plans) -> None:
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "a.ResidualEncoderUNet"


@pytest.mark.parametrize(
    "change, message",
    [
        (take_residual_encoder, "plans a.ResidualEncoderUNet, which is not supported"),
        (set_in_2d(previous_stage="3d_lowres"), r"refines the result of '3d_lowres' \(a cascade\)"),
        (set_in_network(n_conv_per_stage=[3] * 4), r"plans PlainConvUNet with \[2, 3\] conv"),
        (set_in_network(dropout_op="a.Dropout2d"), "plans a network with dropout_op a.Dropout2d"),
        (set_in_network(norm_op="a.BatchNorm2d"), "plans a network with norm_op a.BatchNorm2d"),
        (set_in_network(nonlin="a.ReLU"), "plans a network with nonlin a.ReLU"),
        (set_in_network(features_per_stage=[8] * 4), "the ladder 8, 4, 2, 1 has 4 widths"),
        (set_in_2d(normalization_schemes=["Mine"]), "asks for Mine, which nnU-Net's own code does"),
        (set_in_2d(use_mask_for_norm=["false"]), r"use_mask_for_norm is \['false'\]: it must"),
        (set_in_2d(resampling_fn_data="mine"), "asks for mine, which nnU-Net's own code does not"),
        (lambda plans: plans["configurations"].pop("2d"), "there is no configuration '2d', only"),
        (set_in_2d(inherits_from="2d"), "the configurations 2d inherit in a circle"),
        (lambda plans: plans.update(plans_per_stage={}), "holds plans of nnU-Net v1"),
    ],
    ids=[
        "residual encoder", "cascade", "three convolutions", "dropout", "batch norm", "ReLU",
        "narrow already", "normalization", "mask", "resampling", "no such configuration", "circle",
        "v1",
    ],
)  # fmt: skip
def test_plan_nnunet_data_set_refuses_plans(tmp_path, change, message) -> None:
    folder = write_planned(tmp_path, change=change)
    with pytest.raises(ValueError, match=message):
        plan_nnunet_data_set(4)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "region 'whole' of several values, which"),
        ({"background": 0, "a": 1, "ignore": 2}, "ignore label, which is not supported: relabel"),
    ],
    ids=["regions", "ignore label"],
)
def test_plan_nnunet_data_set_refuses_labels(tmp_path, labels, message) -> None:
    write_planned(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=message):
        plan_nnunet_data_set(4)


def test_plan_nnunet_data_set_refuses_a_configuration_that_was_chosen(tmp_path) -> None:
    write_planned(tmp_path)
    with pytest.raises(ValueError, match="'2d_xtiny8' is a chosen width: give the one it inherits"):
        plan_nnunet_data_set(4, "2d_xtiny8")


def test_2d_images_have_no_slice_axis(tmp_path) -> None:
    def flatten(plans) -> None:
        plans["original_median_shape_after_transp"] = [1, 40, 32]

    write_planned(tmp_path, change=flatten, shape=(1, 40, 32))
    assert plan_nnunet_data_set(4).plan.slice_axis is None


def test_configure_data_set_waits_for_no_other_process(tmp_path, monkeypatch) -> None:
    write_planned(tmp_path)
    planned = plan_nnunet_data_set(4)

    def refuse(*_: object) -> None:
        raise BlockingIOError(f"another process writes {str(planned.plans_path)!r}")

    monkeypatch.setattr(module, "write_lock", refuse)
    with pytest.raises(BlockingIOError, match="another process writes .*nnUNetPlans.json"):
        configure_data_set(planned, progress=False)


def test_a_broken_case_is_named_and_the_plans_stay(tmp_path) -> None:
    folder = write_planned(tmp_path)
    before = (folder / "nnUNetPlans.json").read_bytes()
    (folder / "nnUNetPlans_2d" / "case1.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="case 'case1': .*case1.npz"):
        configured()
    assert (folder / "nnUNetPlans.json").read_bytes() == before


@pytest.mark.search
def test_half_a_character_in_plans_does_not_stop_the_search_at_its_end(tmp_path) -> None:
    folder = write_planned(tmp_path)
    path = folder / "nnUNetPlans.json"
    # As nnU-Net's planner would not write it, nor any other text of this package.
    path.write_text(path.read_text().replace("{", '{"note": "\u00e4\\ud800",', 1), encoding="utf-8")
    before = json.loads(path.read_text(encoding="utf-8"))
    found = configured()
    after = json.loads(path.read_text(encoding="utf-8"))
    del after["configurations"][found.name]
    assert after == before


def places(content: object, at: tuple = ()) -> list[tuple]:
    """Where values are in the plans, in the 2D configuration only."""
    found = [at] if at else []
    if isinstance(content, dict) and at[:1] != ("foreground_intensity_properties_per_channel",):
        for key, value in content.items():
            if at != ("configurations",) or key == "2d":
                found += places(value, (*at, key))
    return found


@pytest.mark.parametrize("value", [None, "x", -1, 10**9, [], [[0]], {}], ids=repr)
def test_plans_with_any_odd_value_are_taken_or_refused_in_one_line(tmp_path, value) -> None:
    folder = write_planned(tmp_path)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    spots = places(plans)
    assert len(spots) > 40
    for spot in spots:
        changed = json.loads(json.dumps(plans))
        parent = changed
        for key in spot[:-1]:
            parent = parent[key]
        parent[spot[-1]] = value
        (folder / "nnUNetPlans.json").write_text(json.dumps(changed))
        try:
            plan_nnunet_data_set(4)
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error) or "ladder" in str(error), spot  # noqa: PT017
