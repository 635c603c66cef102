from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.bundle.search_file import read_search
from monai_xtiny.system.config_text import PlainPath
from tests.cli.typed import refused, run_main
from tests.conftest import DATA, write_dicom_series, write_nifti, write_png
from tests.processes import run_module, run_ranks, start_module

# Less is scored, where the choice is not looked at.
BRIEF = ("--method", "paper")
PAYLOAD = "__import__('pathlib').Path('pwned').touch()"


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def no_images(folder: Path) -> None:
    pass


def truncated_nifti(folder: Path) -> None:
    path = write_nifti(folder / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_voxels(folder: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    values[3, 4, 5] = np.nan
    write_nifti(folder / "scan.nii.gz", values=values)


def infinite_voxels(folder: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    values[3, 4, 5] = np.inf
    write_nifti(folder / "scan.nii.gz", values=values)


def constant_image(folder: Path) -> None:
    write_nifti(folder / "scan.nii.gz", values=np.full((20, 24, 18), 7, dtype=np.float32))


def differing_channels(folder: Path) -> None:
    write_png(folder / "a.png")
    write_png(folder / "scan.png", (20, 24, 3))


def differing_dimensions(folder: Path) -> None:
    write_nifti(folder / "a.nii.gz")
    write_nifti(folder / "scan.nii.gz", (30, 30))


def four_dimensions(folder: Path) -> None:
    write_nifti(folder / "scan.nii.gz", (20, 24, 18, 3))


def unreadable(folder: Path) -> None:
    (folder / "scan.png").write_bytes(b"this is no image")


def a_folder_for_a_file(folder: Path) -> None:
    (folder / "scan.png").mkdir()


def tiny_images(folder: Path) -> None:
    write_png(folder / "scan.png", (8, 8))


@pytest.mark.search
@pytest.mark.parametrize(
    "make, what",
    [
        (no_images, "no images in"),
        (truncated_nifti, "cannot be read"),
        (nan_voxels, "1 voxels are NaN or infinite"),
        (infinite_voxels, "1 voxels are NaN or infinite"),
        (constant_image, "constant (7.0 everywhere)"),
        (differing_channels, "3 channels, but 'a.png' has 1"),
        (differing_dimensions, "is 2D, but 'a.nii.gz' is 3D"),
        (four_dimensions, "a 4D volume"),
        (unreadable, "cannot be read"),
        (a_folder_for_a_file, "cannot be read"),
        (tiny_images, "too small"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("reach", ["planning", "loading"])
def test_search_refuses_bad_images(capsys, tmp_path, make, what, reach) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    before = snapshot(tmp_path)
    arguments = ["search", "--images", folder, "--bundle", tmp_path / "out" / "x_segmentation"]
    if reach == "loading":  # a given plan leaves the finding to the loading
        plans = DATA / "nnUNetPlans_Dataset004_Hippocampus.json"
        arguments += ["--plans", plans]
        if make is tiny_images:
            pytest.skip("nnU-Net's plan pads small images")
    line = refused(capsys, *arguments)
    assert what in line
    if make not in (no_images, tiny_images):
        assert "scan" in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "options, what",
    [
        (("--device", "abacus"), "device 'abacus' is unknown"),
        (("--device", "cuda:77"), "device 'cuda:77' is unknown or not available"),
        (("--method", "best"), "unknown method 'best'"),
        (("--spatial_dims", "4"), "--spatial_dims is 4"),
        (("--spatial_dims", "3"), "a 3D plan for single slices"),
        (("--num_images", "0"), "num_images is 0"),
        (("--num_images", "some"), "--num_images is 'some'"),
        (("--num_seeds", "0"), "--num_seeds is 0"),
        (("--seed", "one"), "--seed is 'one'"),
        (("--seed", "9" * 30), "give a number from 0"),
        (("--spatial_dims", "2.0"), "--spatial_dims is 2.0"),
        (("--overwrite", "no"), "--overwrite is 'no'"),
        (("--max_parameters", "0"), "--max_parameters is 0: give a whole number above 0"),
        (("--max_parameters", "5"), "--max_parameters is 5, and the narrowest network, width 1"),
        (("--max_gmacs", "-1"), "--max_gmacs is -1: give a number above 0"),
        (("--max_gmacs", "1e-9"), "--max_gmacs is 1e-09, and the narrowest network, width 1"),
        (("--max_latency_ms", "fast"), "--max_latency_ms is 'fast': give a number above 0"),
        (("--unit_test", "no"), "--unit_test is 'no'"),
        (("--torchscript", "no"), "--torchscript is 'no'"),
        (("--label_names", "one"), "two or more different ones"),
        (("--plans", "nowhere.json"), "no such file: 'nowhere.json'"),
        (("--config_file", "nowhere.json"), "no such file: 'nowhere.json'"),
        (("--method", f"${PAYLOAD}"), "which MONAI's configs evaluate"),
        (("--device", f"${PAYLOAD}"), "which MONAI's configs evaluate"),
        (("--configuration", f"${PAYLOAD}"), "which MONAI's configs evaluate"),
        (("--label_names", f"background,${PAYLOAD}"), "which MONAI's configs evaluate"),
        (("--label_names", "background,@bundle"), "which MONAI's configs evaluate"),
        (("--label_names", "background,%search.json"), "which MONAI's configs evaluate"),
        (("--label_names", "background,a#b"), "which MONAI's configs split at"),
        (("--label_names", "background,a::b"), "which MONAI's configs split at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_search_refuses_bad_options(
    capsys, tmp_path, monkeypatch, png_folder, options, what
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    arguments = ("search", "--images", png_folder, "--bundle", tmp_path / "x_segmentation")
    assert what in refused(capsys, *arguments, *options)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [f"${PAYLOAD}", "@images", "%search.json", "a#b", "a::b"])
def test_search_refuses_bundle_names_that_are_code(
    capsys, tmp_path, monkeypatch, png_folder, name
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    for bundle in (name, tmp_path / name):
        refused(capsys, "search", "--images", png_folder, "--bundle", bundle)
    assert snapshot(tmp_path) == before


@pytest.mark.search
@pytest.mark.parametrize("name", [f"${PAYLOAD}", "@images", "%search.json", "a#b", "a::b"])
def test_search_takes_image_paths_that_look_like_code_as_they_are(
    capsys, tmp_path, monkeypatch, name
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        write_png(tmp_path / name / f"{name.replace('/', '')}{index}.png", seed=index)
    assert run_main("search", "--images", name, "--bundle", "out/x_segmentation", *BRIEF) == 0
    search = json.loads(Path("out/x_segmentation/docs/search.json").read_text())
    assert search["images"] == [f"{name}{index}.png" for index in range(2)]
    assert not Path("pwned").exists()


def test_search_refuses_labels_that_are_code_in_a_data_set(
    capsys, tmp_path, monkeypatch, png_folder
) -> None:
    monkeypatch.chdir(tmp_path)
    (png_folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, f"${PAYLOAD}": 1}})
    )
    line = refused(capsys, "search", "--images", png_folder, "--bundle", "x_segmentation")
    assert "which MONAI's configs evaluate" in line
    assert not Path("pwned").exists()


def test_search_refuses_a_folder_that_is_not_empty(capsys, tmp_path, png_folder) -> None:
    bundle = tmp_path / "x_segmentation"
    bundle.mkdir()
    (bundle / "precious.txt").write_text("mine")
    command = ("search", "--images", png_folder, "--bundle", bundle)
    assert "exists and is not empty" in refused(capsys, *command)
    assert "is no bundle" in refused(capsys, *command, "--overwrite")
    assert snapshot(bundle) == {"precious.txt"}


@pytest.mark.search
def test_search_takes_a_link_for_what_it_points_to(tmp_path, png_folder) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "x_segmentation"
    link.symlink_to(tmp_path / "real")
    assert run_main("search", "--images", png_folder, "--bundle", link, *BRIEF) == 0
    assert link.is_symlink()
    assert (tmp_path / "real" / "configs" / "train.json").is_file()
    assert not list(tmp_path.glob(".*"))


def test_plan_never_replaces_what_is_no_file(capsys, tmp_path, png_folder) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "cannot write" in refused(capsys, "plan", "--images", png_folder, "--output", pipe)
    assert pipe.is_fifo()
    (tmp_path / "plan.json").write_text('{"patch_size": "old"}')
    (tmp_path / "link.json").symlink_to(tmp_path / "plan.json")
    assert run_main("plan", "--images", png_folder, "--output", tmp_path / "link.json") == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "plan.json").read_text())["spatial_dims"] == 2


def test_search_refuses_a_file_that_is_no_image(capsys, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    command = ("search", "--images", tmp_path / "notes.txt", "--bundle", tmp_path / "x")
    assert "is no image" in refused(capsys, *command)


def test_search_refuses_a_file_as_parent(capsys, tmp_path, png_folder) -> None:
    (tmp_path / "file").write_text("")
    bundle = tmp_path / "file" / "x_segmentation"
    assert "is a file" in refused(capsys, "search", "--images", png_folder, "--bundle", bundle)


def test_search_refuses_a_short_ladder(capsys, tmp_path, png_folder) -> None:
    plans = json.loads((DATA / "nnUNetPlans_Dataset076_DSB2018Fluo.json").read_text())
    settings = plans["configurations"]["2d"]
    settings["architecture"]["arch_kwargs"]["features_per_stage"] = [8] * 7
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    command = ("search", "--images", png_folder, "--bundle", tmp_path / "x_segmentation")
    line = refused(capsys, *command, "--plans", tmp_path / "plans.json")
    assert "the ladder 8, 4, 2, 1 has 4 widths" in line


@pytest.mark.search
def test_search_works_with_spaces_and_letters_of_all_scripts(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        write_png(tmp_path / "Größe 脳" / f"Bild {index} é.png", seed=index)
    bundle = "Ergebnis é/脳 bundle_segmentation"
    labels = "Hintergrund,Zelle größer"
    command = ("search", "--images", "Größe 脳", "--bundle", bundle, "--label_names", labels)
    assert run_main(*command, *BRIEF) == 0
    out = capsys.readouterr().out
    assert "<- selected" in out
    metadata = json.loads((Path(bundle) / "configs" / "metadata.json").read_text())
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "Hintergrund", "1": "Zelle größer"}


def test_search_twice_gives_the_same_scores_and_weights(tmp_path, png_folder, searched) -> None:
    again, labels = tmp_path / "again_segmentation", ("--label_names", "background,cell")
    assert run_main("search", "--images", png_folder, "--bundle", again, *labels) == 0
    first, second = (
        json.loads((bundle / "docs" / "search.json").read_text()) for bundle in (searched, again)
    )
    first.pop("seconds"), second.pop("seconds")
    assert first == second
    weights = [(bundle / "models" / "model.pt").read_bytes() for bundle in (searched, again)]
    assert weights[0] == weights[1]


def test_search_overwrites_a_bundle_when_told(tmp_path, png_folder, searched_copy) -> None:
    bundle = searched_copy
    command = ("search", "--images", png_folder, "--bundle", bundle)
    assert run_main(*command, *BRIEF, "--seed", "1", "--overwrite") == 0
    assert json.loads((bundle / "docs" / "search.json").read_text())["seeds"] == [1]
    assert snapshot(tmp_path) & {"x_segmentation"} and not list(tmp_path.glob(".x_*"))


def test_the_stages_one_by_one_give_what_search_gives(tmp_path, png_folder, searched) -> None:
    whole, parts = searched, tmp_path / "parts_segmentation"
    labels = ("--label_names", "background,cell")
    plan, scores, search = (tmp_path / f"{name}.json" for name in ("plan", "scores", "search"))
    assert run_main("plan", "--images", png_folder, "--output", plan) == 0
    assert run_main("score", "--images", png_folder, "--output", scores) == 0
    assert run_main("select", "--scores", scores, "--output", search) == 0
    assert run_main("export", "--search", search, "--bundle", parts, *labels) == 0
    assert run_main("report", "--search", parts, "--output", tmp_path / "curve.png") == 0
    expected = json.loads((whole / "docs" / "search.json").read_text())
    assert json.loads(plan.read_text()) == expected["plan"]
    found = json.loads((parts / "docs" / "search.json").read_text())
    expected.pop("seconds"), found.pop("seconds")
    assert found == expected
    curve = (tmp_path / "curve.png").read_bytes()
    assert curve == (whole / "docs" / "sensitivity.png").read_bytes()
    for name in ("train", "inference"):
        theirs, ours = ((b / "configs" / f"{name}.json").read_text() for b in (whole, parts))
        assert ours == theirs


def test_export_writes_another_width_when_told(capsys, tmp_path, searched) -> None:
    search, wide = searched / "docs" / "search.json", tmp_path / "wide_segmentation"
    export = ("export", "--search", search, "--bundle", wide, "--max_features")
    assert run_main(*export, 32) == 0
    assert Bundle.open(wide).selection.max_features == 32
    config = json.loads((wide / "configs" / "train.json").read_text())
    assert max(config["network_def"]["filters"]) == 32
    assert Bundle.open(wide).label_names == Bundle.open(searched).label_names
    chosen = Bundle.open(searched).selection.max_features
    says = f"The choice was width {chosen}; width 32 was asked for in its place."
    for page in ("README.md", "report.html"):
        assert says in (wide / "docs" / page).read_text()
        assert "was asked for" not in (searched / "docs" / page).read_text()
    for width, message in ((7, "width 7 is not in the ladder"), ("wide", "give a whole number")):
        assert run_main(*export, width, "--overwrite") == 2
        assert message in capsys.readouterr().err
    assert Bundle.open(wide).selection.max_features == 32


@pytest.mark.search
def test_report_renews_the_page_of_a_search(capsys, tmp_path, searched_copy, searched) -> None:
    page = searched_copy / "docs" / "report.html"
    former = page.read_bytes()
    assert run_main("report", searched_copy) == 0 and page.read_bytes() == former
    images = searched.parent / "images"
    assert run_main("report", searched_copy, "--images", images) == 0
    assert b"data:image/png" in page.read_bytes()
    private = tmp_path / "private.html"
    assert run_main("report", searched_copy, "--private", "--output", private) == 0
    assert b"data:image" not in private.read_bytes() and b"case0" not in private.read_bytes()
    assert run_main("report", searched_copy, "--output", private) == 0  # a page of ours
    assert b"case0" in private.read_bytes()


@pytest.mark.search
def test_report_refuses_what_it_cannot_show(capsys, tmp_path, searched) -> None:
    search, own = searched / "docs" / "search.json", tmp_path / "own.html"
    own.write_text("<p>mine</p>")
    for words, what in (
        ((), "report needs a bundle, or --search FILE alone"),
        ((searched, "--search", search), "report needs a bundle, or --search FILE alone"),
        ((search,), "is no bundle: give one, or --output FILE.png"),
        ((searched, "--output", own), "no earlier result"),
        ((searched, "--private", "--output", tmp_path / "x.png"), "are for the page"),
    ):
        assert run_main("report", *words) == 2
        assert what in capsys.readouterr().err
    assert own.read_text() == "<p>mine</p>"


@pytest.mark.search
def test_search_and_select_keep_to_a_budget(capsys, tmp_path, png_folder, searched) -> None:
    scores, output = searched / "docs" / "search.json", tmp_path / "search.json"
    table = read_search(scores).table
    counts = {rung.max_features: rung.num_parameters for rung in table.ladder}
    limit = ("--max_parameters", counts[2])
    bundle = tmp_path / "x_segmentation"
    command = ("search", "--images", png_folder, "--bundle", bundle)
    assert run_main(*command, *limit) == 0
    said = capsys.readouterr().out
    assert "selected width 2:" in said
    line = f"budget of at most {counts[2]:,} parameters: width 2 in place of "
    assert line in said and line in (bundle / "docs" / "README.md").read_text()
    assert run_main("select", "--scores", scores, "--output", output, *limit) == 0
    assert line in capsys.readouterr().out
    chosen = [read_search(path) for path in (bundle / "docs" / "search.json", output)]
    assert [item.max_features for item in chosen] == [2, 2]
    assert chosen[0].budget == chosen[1].budget is not None
    assert "narrowest" in refused(capsys, "select", "--scores", scores, "--max_parameters", 3)
    assert "0: give" in refused(capsys, "select", "--scores", scores, "--max_gmacs", 0)


def test_search_says_before_it_begins_that_latency_cannot_be_measured(
    capsys, tmp_path, monkeypatch, png_folder
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    before = snapshot(tmp_path)
    command = ("search", "--images", png_folder, "--bundle", tmp_path / "x_segmentation")
    line = refused(capsys, *command, "--max_latency_ms", 5)
    assert line == "error: onnxruntime cannot be imported: pip install monai-xtiny[deploy]"
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_search_keeps_to_a_latency_that_is_measured_here(capsys, tmp_path, png_folder) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    bundle = tmp_path / "x_segmentation"
    command = ("search", "--images", png_folder, "--bundle", bundle, "--method", "paper")
    narrow = ("--max_parameters", 400)  # width 1 alone: it is exported and timed once
    line = refused(capsys, *command, *narrow, "--max_latency_ms", "1e-6")
    assert "--max_latency_ms is 1e-06, and the narrowest network, width 1, takes" in line
    assert not bundle.exists()
    assert run_main(*command, "--max_latency_ms", 10_000) == 0
    said = capsys.readouterr().out
    found = read_search(bundle / "docs" / "search.json")
    assert found.budget is not None and list(found.budget.latencies_ms) == [found.max_features]
    assert f"width {found.max_features} is within it" in said
    assert [path.name for path in tmp_path.iterdir() if "x_seg" in path.name] == [bundle.name]


@pytest.mark.slow
def test_monai_bundle_runs_the_search_within_a_budget(tmp_path, png_folder) -> None:
    config = Path(__file__).parents[2] / "configs" / "search.json"
    bundle = tmp_path / "x_segmentation"
    command = ["monai.bundle", "run", "--config_file", str(config), "--images", str(png_folder)]
    command += ["--bundle", str(bundle), "--max_parameters", "6000"]
    done = run_module(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_search(bundle / "docs" / "search.json")
    assert found.budget is not None and found.rung.num_parameters <= 6000


@pytest.mark.search
def test_search_reads_a_tree_of_dicom_series(tmp_path) -> None:
    for index in range(2):
        folder = tmp_path / "tree" / f"patient {index}" / "ct"
        write_dicom_series(folder, slices=6, series=f"1.2.{index + 3}", shape=(24, 32))
    bundle = tmp_path / "x_segmentation"
    command = ("search", "--images", tmp_path / "tree", "--bundle", bundle, "--spatial_dims", 2)
    assert run_main(*command, *BRIEF) == 0
    search = json.loads((bundle / "docs" / "search.json").read_text())
    assert search["images"] == ["patient 0/ct", "patient 1/ct"]
    assert search["plan"]["slice_axis"] == 2
    assert search["plan"]["spacing"] == [0.5, 0.75]


@pytest.mark.parametrize("dims", [2, 3])
def test_search_config_preprocesses_as_the_method_says(tmp_path, dims) -> None:
    # Stored (z, x, y), 2 mm slices; the last case is larger and smaller than the patch.
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    for index in range(3):
        write_nifti(tmp_path / f"{index}.nii.gz", (9, 32, 28), seed=index, affine=affine)
    write_nifti(tmp_path / "3.nii.gz", (7, 20, 36), seed=3, affine=affine)
    parser = ConfigParser()
    parser.read_config(str(Path(__file__).parents[2] / "configs" / "search.json"))
    parser.update({"images": PlainPath(str(tmp_path)), "spatial_dims": dims, "progress": False})
    plan = parser.get_parsed_content("plan")
    assert plan.slice_axis == (2 if dims == 2 else None)
    assert plan.spacing == (1.0, 1.0, 2.0)[:dims]
    for image, index in zip(parser.get_parsed_content("sample").images, range(4), strict=True):
        stored = np.asarray(nibabel.load(tmp_path / f"{index}.nii.gz").dataobj)
        volume = np.moveaxis(stored, 0, 2)  # to (x, y, z)
        expected = (volume - volume.mean()) / volume.std()
        if dims == 2:
            expected = expected[:, :, volume.shape[2] // 2]
        for axis, size in enumerate(plan.patch_size):
            extent = expected.shape[axis]
            if extent > size:
                start = extent // 2 - size // 2
                expected = np.take(expected, range(start, start + size), axis=axis)
            before = max(0, size - extent) // 2
            pads = [(0, 0)] * dims
            pads[axis] = (before, max(0, size - extent) - before)
            expected = np.pad(expected, pads)
        np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-5)


@pytest.mark.search
def test_search_takes_nnunets_plan(tmp_path, png_folder) -> None:
    plans = DATA / "nnUNetPlans_Dataset004_Hippocampus.json"
    bundle = tmp_path / "x_segmentation"
    command = ("search", "--images", png_folder, "--bundle", bundle, "--plans", plans)
    assert run_main(*command, *BRIEF, "--num_images", "1") == 0
    plan = json.loads((bundle / "docs" / "search.json").read_text())["plan"]
    assert plan["patch_size"] == [40, 56]  # nnU-Net writes rows first: [56, 40]
    assert plan["slice_axis"] is None
    assert len(plan["strides"]) == 4


@pytest.mark.slow
def test_monai_bundle_runs_the_same_config_with_other_transforms(
    tmp_path, png_folder, searched
) -> None:
    root = Path(__file__).parents[2]
    config = json.loads((root / "configs" / "search.json").read_text())
    for transform in config["preprocessing"]["transforms"]:
        if transform["_target_"] == "NormalizeIntensityd":
            transform.clear()
            transform.update({"_target_": "ScaleIntensityd", "keys": "image"})
    (tmp_path / "configs").mkdir()
    changed = tmp_path / "configs" / "search.json"
    changed.write_text(json.dumps(config))
    results = {}
    for name, file in (("same", root / "configs" / "search.json"), ("other", changed)):
        bundle = tmp_path / f"{name}_segmentation"
        command = ["monai.bundle", "run", "--config_file", str(file)]
        command += ["--images", str(png_folder), "--bundle", str(bundle)]
        command += ["--label_names", "background,cell"]
        done = run_module(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results[name] = json.loads((bundle / "docs" / "search.json").read_text())["ladder"]
    assert json.loads((searched / "docs" / "search.json").read_text())["ladder"] == results["same"]
    assert results["other"] != results["same"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_gpus")
@pytest.mark.parametrize(
    ("engine", "kind"),
    # torchrun starts the command line in test_a_rank_that_dies.
    [("monai_xtiny", "volumes"), ("monai.bundle", "pictures"), ("monai_xtiny", "small pictures")],
)
def test_search_on_two_processes_gives_the_scores_of_one(tmp_path, engine, kind) -> None:
    folder = tmp_path / "images"
    for index in range(3):
        if kind == "volumes":
            write_nifti(folder / f"case{index}.nii.gz", (24, 32, 24), seed=index)
        else:
            write_png(
                folder / f"case{index}.png", (128, 136) if kind == "pictures" else (56, 40), index
            )
    configs = Path(__file__).parents[2] / "configs"
    files = [str(configs / "search.json"), str(configs / "multi_gpu_search.json")]
    found = []
    for processes in (1, 2):
        bundle = tmp_path / f"on{processes}_segmentation"
        options = ["--images", str(folder), "--bundle", str(bundle), "--num_seeds", "2"]
        command = ["monai_xtiny", "search"]
        if processes == 2 and engine == "monai.bundle":
            command = ["monai.bundle", "run", "--config_file", str(files)]
        if processes == 1:
            runs = [run_module(*command, *options, cwd=tmp_path)]
        elif engine == "monai_xtiny":
            runs = run_ranks(*command, *options, cwd=tmp_path)
        else:
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            start += ["--nproc_per_node=2", "-m", *command, *options]
            runs = [
                subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
            ]
        assert [done.returncode for done in runs] == [0] * len(runs), runs[0].stderr[-3000:]
        assert sum(done.stdout.count("<- selected") for done in runs) == 1
        found.append(json.loads((bundle / "docs" / "search.json").read_text()))
    assert found[0]["ladder"] == found[1]["ladder"]
    assert found[0]["selected"] == found[1]["selected"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_gpus")
def test_score_on_two_processes_gives_the_table_of_one(tmp_path, png_folder) -> None:
    found = []
    for processes in (1, 2):
        table = tmp_path / f"{processes}.json"
        command = ["monai_xtiny", "score", "--images", png_folder, "--output", table]
        for done in run_ranks(*command, cwd=tmp_path, num_ranks=processes):
            assert done.returncode == 0, done.stderr[-3000:]
        content = json.loads(table.read_text())
        del content["seconds"]
        found.append(content)
    assert found[0] == found[1]
    assert len(found[0]["alignment_seeds"]) > 1  # the second round was shared out too
    assert {path.suffix for path in tmp_path.glob("*.json*")} == {".json"}


def finished_units(journal: Path) -> int:
    """Whole lines of a journal, its head apart."""
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.is_file() else 0


@pytest.mark.slow
def test_search_killed_at_random_moments_goes_on_and_ends_with_the_same_bytes(tmp_path) -> None:
    folder = tmp_path / "images"
    for index in range(4):
        write_png(folder / f"case{index}.png", (128, 136), seed=index)
    results, num_units, seconds = [], 0, 0.0
    for name, num_kills in (("whole", 0), ("killed", 8)):
        parent = tmp_path / name
        parent.mkdir()
        bundle = parent / "x_segmentation"
        journal = parent / ".x_segmentation.search.jsonl"
        command = ["search", "--images", str(folder), "--bundle", str(bundle)]
        command += ["--method", "alignment"]  # which asks for more than two rounds
        moments = random.Random(num_kills)
        finished = 0
        for number in range(num_kills):
            process = start_module("monai_xtiny", *command, cwd=tmp_path)
            # Half of them spread over the units, the others at any moment before scoring.
            target = max(finished, num_units * number // (num_kills + 2))
            deadline = time.monotonic() + 120
            while number % 2 and process.is_alive() and time.monotonic() < deadline:
                if finished_units(journal) > target:
                    break
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.05 if number % 2 else seconds))
            process.kill()
            process.join()
            assert finished_units(journal) >= finished or bundle.exists()
            finished = finished_units(journal)
        if num_kills:
            assert finished > 80  # the first round: some were killed in a later one
            assert not bundle.exists()
        start = time.monotonic()
        done = run_module("monai_xtiny", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in parent.iterdir()] == ["x_segmentation"]
        content = json.loads((bundle / "docs" / "search.json").read_text())
        seconds = time.monotonic() - start - content.pop("seconds")["score"]
        num_units = sum(
            max(len(rung["sensitivity"]), len(rung.get("alignment", ())))
            for rung in content["ladder"]
        )
        results.append(json.dumps(content))
    assert results[0] == results[1]


@pytest.mark.search
@pytest.mark.parametrize("moment", ["export", "after"])
def test_search_killed_while_it_ends_leaves_nothing_behind(tmp_path, png_folder, moment) -> None:
    killed = {"export": "writer.model_card", "after": "journal.remove_journal"}[moment]
    script = tmp_path / "search.py"
    script.write_text(
        "import os, sys\n"
        "from monai_xtiny.bundle import writer\n"
        "from monai_xtiny.search import journal\n"
        f"{killed} = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "from monai_xtiny.__main__ import main\n"
        "main(sys.argv[1:])"
    )
    bundle = tmp_path / "out" / "x_segmentation"
    options = ["search", "--images", str(png_folder), "--bundle", str(bundle), *BRIEF]
    done = run_module(str(script), *options, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in bundle.parent.iterdir()}
    assert {".x_segmentation.search.jsonl", ".x_segmentation.lock"} < left
    assert len(left) == 3
    if moment == "after":
        before = (bundle / "docs" / "search.json").read_bytes()
        assert run_main(*options) == 2  # there is a bundle, as after every other search
        assert (bundle / "docs" / "search.json").read_bytes() == before
    else:
        assert run_main(*options) == 0
    assert [path.name for path in bundle.parent.iterdir()] == ["x_segmentation"]


def process_of_rank(rank: int, folder: Path) -> int:
    """The process of a rank that torchrun started in a folder."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            names = environ.read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in names and environ.with_name("cwd").readlink() == folder:
                return int(environ.parent.name)
        except OSError:  # ended meanwhile, or somebody else's
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the rank in /proc")
@pytest.mark.usefixtures("without_gpus")
def test_a_rank_that_dies_ends_the_run_and_the_same_command_goes_on(tmp_path) -> None:
    folder = tmp_path / "images"
    for index in range(4):
        write_png(folder / f"case{index}.png", (192, 192), seed=index)
    contents = []
    for name in ("whole", "resumed"):
        bundle = tmp_path / name / "x_segmentation"
        bundle.parent.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", "-m", "monai_xtiny", "search"]
        command += ["--images", str(folder), "--bundle", str(bundle), "--method", "paper"]
        if name == "resumed":
            journals = [bundle.with_name(f".{bundle.name}.search.jsonl{end}") for end in ("", ".1")]
            with subprocess.Popen(
                command, cwd=bundle.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True,
            ) as process:  # fmt: skip
                deadline = time.monotonic() + 120
                while time.monotonic() < deadline and not all(map(finished_units, journals)):
                    time.sleep(0.01)
                os.kill(process_of_rank(1, bundle.parent), signal.SIGKILL)
                error = process.communicate(timeout=120)[1]
            assert process.returncode != 0
            assert re.search(r"(?s)Root Cause.*rank +: 1 .*SIGKILL", error), error
            assert not bundle.exists()
            assert all(map(finished_units, journals))
        if name == "whole":
            runs = run_ranks(*command[command.index("monai_xtiny") :], cwd=bundle.parent)
        else:
            runs = [
                subprocess.run(
                    command, cwd=bundle.parent, capture_output=True, text=True, check=False
                )
            ]
        for done in runs:
            assert done.returncode == 0, done.stderr[-3000:]
        assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]
        content = json.loads((bundle / "docs" / "search.json").read_text())
        del content["seconds"]
        contents.append(content)
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_search_refuses_to_go_on_with_other_images(capsys, tmp_path, png_folder) -> None:
    bundle = tmp_path / "x_segmentation"
    journal = tmp_path / ".x_segmentation.search.jsonl"
    command = ["search", "--images", png_folder, "--bundle", bundle]
    process = start_module("monai_xtiny", *command, cwd=tmp_path)
    while process.is_alive() and finished_units(journal) < 1:
        time.sleep(0.01)
    process.kill()
    process.join()
    before = journal.read_bytes()
    write_png(png_folder / "case3.png", seed=99)
    line = refused(capsys, "search", "--images", png_folder, "--bundle", bundle)
    assert "journal of an interrupted search that differs in its images" in line
    assert journal.read_bytes() == before
    assert not bundle.exists()


NEVER_OPENS_LABELS = """
import sys
def audit(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and "labelsTr" in str(arguments[0]):
        print("looked at", arguments[0], file=sys.stderr)
        import os; os._exit(99)
sys.addaudithook(audit)
from monai_xtiny.cli.commands import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_search_never_looks_at_labels(tmp_path) -> None:
    root = tmp_path / "Dataset001"
    for index in range(3):
        write_png(root / "imagesTr" / f"c{index}_0000.png", seed=index)
    labels = root / "labelsTr"
    labels.mkdir()
    for index in range(3):
        (labels / f"c{index}.png").write_bytes(b"a label that nothing can read")
    labels.chmod(0)
    bundle = tmp_path / "x_segmentation"
    script = tmp_path / "search.py"
    script.write_text(NEVER_OPENS_LABELS)
    search = [str(script), "search", "--images"]
    try:
        done = run_module(*search, root, "--bundle", bundle, cwd=tmp_path)
    finally:
        labels.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert (bundle / "docs" / "search.json").is_file()
    caught = run_module(*search, labels, "--bundle", tmp_path / "y", cwd=tmp_path)
    assert caught.returncode == 99  # the hook does catch a look


@pytest.mark.slow
def test_search_shows_progress_on_a_terminal(tmp_path, png_folder) -> None:
    import fcntl
    import pty
    import struct
    import termios

    command = [sys.executable, "-m", "monai_xtiny", "search", "--images", str(png_folder)]
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [*command, "--bundle", str(tmp_path / "x_segmentation"), *BRIEF],
        stderr=terminal,
        stdout=terminal,
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # the other end was closed
                break
            if not part:
                break
            shown += part
    os.close(main_end)
    assert process.returncode == 0
    for bar in (b"planning:", b"loading:", b"scoring:"):
        assert bar in shown
