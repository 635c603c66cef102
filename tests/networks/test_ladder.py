from __future__ import annotations

from dataclasses import replace

import pytest

from monai_xtiny.networks.ladder import max_aligned_width, width_ladder


@pytest.mark.parametrize(
    "features, ladder",
    [
        ((32, 64, 128, 256, 512, 512), (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)),
        ((32, 64, 128, 256, 320), (320, 160, 80, 40, 20, 10, 5, 2, 1)),
        ((32, 64, 128), (128, 64, 32, 16, 8, 4, 2, 1)),
    ],
    ids=["2d", "3d", "three stages"],
)
def test_width_ladder_halves_down_to_one(plan_2d, features, ladder) -> None:
    stages = len(features)
    plan = replace(
        plan_2d, features_per_stage=features, patch_size=(64, 64), kernel_size=((3, 3),) * stages,
        strides=((1, 1), *((2, 2),) * (stages - 1)),
    )  # fmt: skip
    assert width_ladder(plan) == ladder


def test_max_aligned_width_is_the_narrowest_with_all_features_of_the_first_stage(plan_2d) -> None:
    assert max_aligned_width(plan_2d) == 32
    assert max_aligned_width(replace(plan_2d, features_per_stage=(24, 64, 128, 320))) == 40
