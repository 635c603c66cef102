"""The search on real images by nnU-Net's own plans, without nnU-Net."""

from __future__ import annotations

import json
import shutil

import pytest

from monai_xtiny.nnunet.configure import configure_data_set, plan_nnunet_data_set
from tests.conftest import DATA

NAME = "Dataset076_DSB2018Fluo"


@pytest.mark.slow
def test_the_published_rule_and_seed_choose_the_published_width(
    real_data, tmp_path, monkeypatch
) -> None:
    # Published for five of six data sets, and measured with the published method on these plans.
    folder = tmp_path / NAME
    folder.mkdir()
    shutil.copy(DATA / f"nnUNetPlans_{NAME}.json", folder / "nnUNetPlans.json")
    shutil.copy(real_data / NAME / "dataset.json", folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(real_data))
    found = configure_data_set(
        plan_nnunet_data_set(76), method="paper", num_images=4, progress=False
    )
    assert found.selection.table.seeds == (369,)
    assert found.name == "2d_xtiny8"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    before = json.loads((folder / "nnUNetPlans.json.before_xtiny").read_text())
    added = plans["configurations"].pop("2d_xtiny8")
    assert plans == before
    assert added["architecture"]["arch_kwargs"]["features_per_stage"] == [8] * 7
    assert found.selection.rung.num_parameters_nnunet == 20_244
