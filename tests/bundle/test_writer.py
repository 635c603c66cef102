from __future__ import annotations

import json
import math
import stat
from dataclasses import replace

import pytest
import torch
from monai.bundle import ConfigParser

from monai_xtiny.bundle import replace as swap
from monai_xtiny.bundle import writer as export
from monai_xtiny.bundle.writer import (
    check_destination,
    clear_finished,
    emitted_configs,
    export_bundle,
)
from monai_xtiny.networks.dynunet import build_network
from monai_xtiny.search.journal import Journal, UnitScore, journal_path
from tests.exports import exported


def listing(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_export_bundle_holds_the_network_at_its_initialization(tmp_path, selection) -> None:
    bundle = export_bundle(selection, tmp_path / "deep" / "x_segmentation", report=False)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    expected = build_network(selection.table.plan, 8, seed=5).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_export_bundle_fills_what_the_plan_decides(tmp_path, selection) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    plan = selection.table.plan
    for name in ("train", "inference"):
        config = json.loads((bundle / "configs" / f"{name}.json").read_text())
        assert config["network_def"]["filters"] == [8, 8, 8, 8]
        assert config["patch_size"] == list(plan.patch_size)
        assert config["num_classes"] == plan.out_channels
        assert "spacing" not in config  # pictures have none
        assert config["bundle_root"] == "."


@pytest.mark.parametrize(
    ("measured", "mirrored", "degrees"),
    [(None, 0.5, 180), (0.05, 0.5, 180), (0.3, 0.0, 15)],
    ids=["not measured", "any", "shared"],
)
def test_training_keeps_the_orientation_that_images_share(
    selection, measured, mirrored, degrees
) -> None:
    table = replace(selection.table, shared_orientation=measured)
    parser = ConfigParser(emitted_configs(replace(selection, table=table))["train"])
    assert parser.get_parsed_content("mirror_prob") == mirrored
    angle = parser.get_parsed_content("rotation_range")
    assert math.degrees(angle) == pytest.approx(degrees, abs=0.1)


def test_training_keeps_the_orientation_of_slices(selection) -> None:
    plan = replace(selection.table.plan, slice_axis=2)
    sliced = replace(selection, table=replace(selection.table, plan=plan))
    parser = ConfigParser(emitted_configs(sliced)["train"])
    assert parser.get_parsed_content("mirror_prob") == 0
    assert math.degrees(parser.get_parsed_content("rotation_range")) == pytest.approx(15, abs=0.1)


def test_export_bundle_gives_the_folder_the_mode_of_a_new_folder(tmp_path, selection) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation", report=False)
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(bundle.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("stage", ["plot_sensitivity", "build_network", "bundle_metadata"])
def test_export_bundle_leaves_nothing_when_it_fails(
    tmp_path, selection, monkeypatch, stage
) -> None:
    def fail(*arguments, **options):
        raise OSError("disk full, on purpose")

    monkeypatch.setattr(export, stage, fail)
    with pytest.raises(OSError, match="on purpose"):
        export_bundle(selection, tmp_path / "deep" / "er" / "x_segmentation")
    assert listing(tmp_path) == []


def test_export_bundle_keeps_the_former_bundle_when_it_fails(
    tmp_path, selection, monkeypatch
) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    (bundle / "models" / "model.pt").write_bytes(b"trained for days")
    before = listing(tmp_path)

    def fail(*arguments, **options):
        raise OSError("on purpose")

    monkeypatch.setattr(export, "plot_sensitivity", fail)
    with pytest.raises(OSError, match="on purpose"):
        export_bundle(selection, bundle, overwrite=True)
    assert listing(tmp_path) == before
    assert (bundle / "models" / "model.pt").read_bytes() == b"trained for days"


def test_export_bundle_puts_the_former_bundle_back_when_the_rename_fails(
    tmp_path, selection, monkeypatch
) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    before = listing(tmp_path)
    rename = export.Path.rename

    def fail_for_the_new_one(self, target):
        if self.name.startswith(".x_segmentation.") and not self.name.endswith(".former"):
            raise OSError("on purpose")
        return rename(self, target)

    monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    monkeypatch.setattr(export.Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="on purpose"):
        export_bundle(selection, bundle, overwrite=True)
    assert listing(tmp_path) == before


def test_export_bundle_refuses_too_few_names(tmp_path, selection) -> None:
    with pytest.raises(ValueError, match=r"3 label names \(a, b, c\) for 2 classes"):
        export_bundle(selection, tmp_path / "x", label_names=["a", "b", "c"])
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["$import os", "@x", "%x", "a#b", "a::b"])
def test_export_bundle_refuses_names_that_are_code(tmp_path, selection, name) -> None:
    with pytest.raises(ValueError, match="rename it"):
        export_bundle(selection, tmp_path / "x", label_names=["background", name])
    with pytest.raises(ValueError, match="rename it"):
        export_bundle(selection, tmp_path / name)
    assert listing(tmp_path) == []


def test_export_bundle_writes_the_test_beside_the_bundle(tmp_path, selection) -> None:
    bundle = export_bundle(selection, tmp_path / "x_segmentation", unit_test=True, report=False)
    test = tmp_path / "test_x_segmentation.py"
    assert sorted(path.name for path in tmp_path.iterdir()) == [test.name, bundle.name]
    assert not list(bundle.glob("*.py"))
    assert 'BUNDLE_NAME = "x_segmentation"' in test.read_text()


@pytest.mark.parametrize("stage", ["render_unit_test", "_write_bundle"])
def test_export_bundle_writes_no_test_when_it_fails(
    tmp_path, selection, monkeypatch, stage
) -> None:
    def fail(*arguments, **options):
        raise OSError("on purpose")

    monkeypatch.setattr(export, stage, fail)
    with pytest.raises(OSError, match="on purpose"):
        export_bundle(selection, tmp_path / "deep" / "x_segmentation", unit_test=True)
    assert listing(tmp_path) == []


def test_export_bundle_replaces_a_test_only_with_overwrite(tmp_path, selection) -> None:
    test = tmp_path / "test_x_segmentation.py"
    test.write_text("mine")
    with pytest.raises(FileExistsError, match="test_x_segmentation.py' exists: .* --overwrite"):
        export_bundle(selection, tmp_path / "x_segmentation", unit_test=True)
    assert listing(tmp_path) == [test.name]
    export_bundle(selection, tmp_path / "x_segmentation", report=False)  # not asked for: left alone
    assert test.read_text() == "mine"
    export_bundle(
        selection, tmp_path / "x_segmentation", overwrite=True, unit_test=True, report=False
    )
    assert "BUNDLE_NAME" in test.read_text()


@pytest.mark.parametrize("name", ["former_width8", "dataset", ".git", "notes.txt"])
def test_export_bundle_overwrites_no_bundle_that_holds_more(tmp_path, selection, name) -> None:
    bundle = exported(selection, tmp_path / "x_segmentation")
    (bundle / "eval").mkdir()
    (bundle / "test_x_segmentation.py").touch()  # as a kill leaves it
    export_bundle(selection, bundle, overwrite=True, unit_test=True, report=False)
    (bundle / name).mkdir()
    before = listing(tmp_path)
    with pytest.raises(FileExistsError, match=f"holds {name}, which --overwrite would delete: mov"):
        export_bundle(selection, bundle, overwrite=True)
    assert listing(tmp_path) == before


def test_export_bundle_replaces_no_folder_by_a_test(tmp_path, selection) -> None:
    (tmp_path / "test_x_segmentation.py").mkdir()
    with pytest.raises(FileExistsError, match="exists: .* remove it yourself first"):
        export_bundle(selection, tmp_path / "x_segmentation", overwrite=True, unit_test=True)
    assert listing(tmp_path) == ["test_x_segmentation.py"]


def test_export_bundle_clears_what_a_killed_export_left(tmp_path, selection) -> None:
    left = tmp_path / ".x_segmentation.part.abc"
    (left / "configs").mkdir(parents=True)
    other = tmp_path / ".y_segmentation.part.abc"
    other.mkdir()
    export_bundle(selection, tmp_path / "x_segmentation", report=False)
    assert {path.name for path in tmp_path.iterdir()} == {"x_segmentation", other.name}


def test_check_destination_puts_back_what_a_killed_overwrite_moved_away(
    tmp_path, selection
) -> None:
    target = exported(selection, tmp_path / "x_segmentation")
    (target / "models" / "mine.pt").touch()
    target.rename(tmp_path / ".x_segmentation.part.abc.former")
    (tmp_path / ".x_segmentation.part.abc").mkdir()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export_bundle(selection, target)
    assert (target / "models" / "mine.pt").is_file()
    export_bundle(selection, target, overwrite=True, report=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x_segmentation"]
    assert not (target / "models" / "mine.pt").exists()


def test_clear_finished_deletes_the_journal_of_the_bundles_own_search(tmp_path, selection) -> None:
    target = exported(selection, tmp_path / "x_segmentation")
    path = journal_path(target)
    clear_finished(target, path)
    journal = Journal(path, {"images": "abc"})
    rung = selection.table.ladder[0]
    unit = (rung.max_features, selection.table.seeds[0])
    journal.add(unit, UnitScore((1e9,)))
    clear_finished(target, path)
    assert path.is_file()
    journal.add(unit, UnitScore(rung.sensitivity[0]))
    clear_finished(tmp_path / "none", path)
    assert path.is_file()
    clear_finished(target, path)
    assert not path.exists()


def test_check_destination_takes_an_empty_folder(tmp_path) -> None:
    (tmp_path / "x").mkdir()
    assert check_destination(tmp_path / "x") == tmp_path / "x"


def test_check_destination_refuses_a_file(tmp_path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        check_destination(tmp_path / "x")
