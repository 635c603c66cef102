from __future__ import annotations

import pytest

from monai_xtiny.bundle.drawing import BAR, HAIRLINE, drawn_stages


def test_drawn_stages_halve_the_patch_by_their_strides(plan_3d) -> None:
    stages = drawn_stages(plan_3d, plan_3d.features_per_stage)
    assert [stage.size for stage in stages] == [(24, 16, 6), (12, 8, 6), (6, 4, 3)]
    assert [stage.kernel_size for stage in stages] == list(plan_3d.kernel_size)


def test_drawn_stages_are_on_one_scale_and_nothing_vanishes(plan_2d) -> None:
    stages = drawn_stages(plan_2d, (1, 1, 1, 128))
    assert [stage.full_bar for stage in stages] == pytest.approx([BAR / 8, BAR / 4, BAR / 2, BAR])
    assert [stage.bar for stage in stages] == pytest.approx([*[HAIRLINE] * 3, BAR / 2])


def test_drawn_stages_refuse_another_number_of_stages(plan_2d) -> None:
    with pytest.raises(ValueError, match=r"3 features \(8, 8, 8\) for 4 stages"):
        drawn_stages(plan_2d, (8, 8, 8))
