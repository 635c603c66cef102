from __future__ import annotations

import pytest

from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.headers import read_headers
from monai_xtiny.plan.data_set import plan_data_set
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
