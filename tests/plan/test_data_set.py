from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_xtiny.data.case import Case, Header
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.plan.data_set import describe_data_set, plan_data_set
from monai_xtiny.plan.planner import plan_images
from tests.conftest import DATA

PLANS = DATA / "nnUNetPlans_Dataset076_DSB2018Fluo.json"


@pytest.fixture
def found(png_folder) -> tuple:
    cases = find_cases(png_folder)
    return cases, dict(zip(cases, read_headers(cases), strict=True))


def test_plan_data_set_plans_from_the_images_without_a_plans_file(found) -> None:
    cases, headers = found
    assert plan_data_set(cases, headers, out_channels=2) == plan_images(cases, out_channels=2)


def test_plan_data_set_takes_nnunets_plan_where_there_is_one(found) -> None:
    cases, headers = found
    plan = plan_data_set(cases, headers, out_channels=2, plans=PLANS)
    assert plan.patch_size == (256, 256) and plan.in_channels == 1 and plan.slice_axis is None


def test_plan_data_set_needs_the_plans_file_that_is_named(found, tmp_path) -> None:
    cases, headers = found
    with pytest.raises(FileNotFoundError, match="give nnU-Net's plans file"):
        plan_data_set(cases, headers, out_channels=2, plans=tmp_path / "none.json")


def sagittal(folder: Path, *names: str, axes: tuple[int, ...] = (1, 2, 0)) -> None:
    """Volumes of 40 x 56 x 40 voxels whose file has RAS axis axes[i] as its axis i."""
    folder.mkdir(exist_ok=True)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)]
    shape = np.array((40, 56, 36))[list(axes)]
    for name in names:
        image = nibabel.Nifti1Image(np.ones(shape, np.uint8), affine)
        nibabel.save(image, folder / f"{name}.nii.gz")


@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 0, 1), (0, 2, 1), (0, 1, 2)])
def test_plan_data_set_turns_nnunets_plan_as_the_images_are_turned(tmp_path, axes) -> None:
    # nnU-Net plans the axes as a file stores them; the bundle turns each volume to RAS.
    def reorder(content) -> None:
        for name, settings in content["configurations"].items():
            if name == "3d_fullres":
                settings["spacing"] = [[3.0, 2.0, 1.0][2 - axes[2 - axis]] for axis in range(3)]

    sagittal(tmp_path / "images", "a", "b", axes=axes)
    cases = find_cases(tmp_path / "images")
    headers = dict(zip(cases, read_headers(cases), strict=True))
    assert {header.shape for header in headers.values()} == {(40, 56, 36)}
    for reader, expected in (
        ("SimpleITKIO", (1.0, 2.0, 3.0)),
        ("NibabelIOWithReorient", tuple(float(axis + 1) for axis in axes)),
    ):
        path = changed_plans(tmp_path, reader, reorder)
        plan = plan_data_set(cases, headers, out_channels=3, plans=path, configuration="3d_fullres")
        assert plan.spacing == expected
    path = changed_plans(tmp_path, "SimpleITKIO")
    flat = plan_data_set(cases, headers, out_channels=3, plans=path)
    assert flat.slice_axis == axes[2]  # slices across the file's last axis


def test_plan_data_set_refuses_volumes_that_nnunet_planned_as_one(tmp_path) -> None:
    folder = tmp_path / "images"
    sagittal(folder, "a")
    sagittal(folder, "b", axes=(0, 1, 2))
    cases = find_cases(folder)
    headers = dict(zip(cases, read_headers(cases), strict=True))
    with pytest.raises(ValueError, match="stored along different axes.*NibabelIOWithReorient"):
        plan_data_set(cases, headers, out_channels=3, plans=changed_plans(tmp_path, "SimpleITKIO"))
    path = changed_plans(tmp_path, "NibabelIOWithReorient")
    assert plan_data_set(cases, headers, out_channels=3, plans=path).slice_axis == 2


def changed_plans(tmp_path: Path, reader: str, change=lambda content: None) -> Path:
    """The plans of the hippocampus, as if read by another of nnU-Net's readers."""
    content = json.loads((DATA / "nnUNetPlans_Dataset004_Hippocampus.json").read_text())
    content["image_reader_writer"] = reader
    change(content)
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    return path


def test_describe_data_set_states_medians_and_units(plan_3d) -> None:
    cases = [Case(f"{name}.nii.gz", (f"d/{name}.nii.gz",), "nifti") for name in "abc"]
    headers = [Header((size, 200, 20), (1.5, size / 100, 5.0), 2) for size in (100, 120, 300)]
    assert describe_data_set(cases, headers, plan_3d) == (
        "found 3 cases with 2 channels (a.nii.gz), 3D, median size 120 x 200 x 20 voxels of "
        "1.5 x 1.2 x 5 mm\n"
        "patch 24 x 16 x 6 voxels of 1.5 x 1.5 x 5 mm, 3 stages, at most 128 features"
    )


def test_describe_data_set_says_how_volumes_are_cut(plan_2d) -> None:
    plan = dataclasses.replace(plan_2d, slice_axis=2)
    text = describe_data_set([Case("a", ("a",), "dicom")], [Header((9, 9, 9), (1, 1, 1), 1)], plan)
    assert "found 1 case with 1 channel (a), 3D, median size 9 x 9 x 9 voxels of 1 x 1 x 1" in text
    assert "patch 32 x 48 voxels of 1 x 1 mm of slices across z, 4 stages" in text
