from __future__ import annotations

import dataclasses

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
