from __future__ import annotations

from dataclasses import replace

import pytest


@pytest.mark.parametrize(
    "change, message",
    [
        ({"spatial_dims": 1}, "spatial_dims is 1"),
        ({"out_channels": 1}, "2 classes with the background"),
        ({"in_channels": 0}, "at least 1 channel"),
        ({"spacing": (1, 0)}, "must be positive"),
        ({"patch_size": (33, 48)}, "not divisible"),
        ({"patch_size": (8, 8)}, "shrinks to one voxel"),
        ({"kernel_size": ((3, 3),) * 3}, "one of each per stage"),
        ({"patch_size": (32, 48, 8)}, "need 2 axes"),
        ({"slice_axis": 3}, "slice_axis is 3"),
        ({"spacing": (1, float("nan"))}, "must be positive"),
        ({"patch_size": (-32, 48)}, "must be positive"),
        ({"kernel_size": ((2, 2),) * 4}, "odd"),
        ({"strides": ((2, 2),) * 4}, "the first stage's must be 1"),
        ({"strides": ((1, 1), (0, 2), (2, 2), (2, 2))}, "none below 1"),
        ({"in_channels": 10**12}, "at most 1024 channels"),
        ({"out_channels": 257}, "and 256 classes can be handled"),
        ({"kernel_size": ((3, 10**6 + 1),) * 4}, "kernels of 31"),
        ({"patch_size": (2**20, 2**20)}, "at most 16 stages, kernels of 31 and 134,217,728"),
        (
            {
                "features_per_stage": (32,) * 17, "kernel_size": ((3, 3),) * 17,
                "strides": ((1, 1),) * 17,
            },
            "17 stages",
        ),
        (
            {
                "features_per_stage": (32, 64), "kernel_size": ((3, 3),) * 2,
                "strides": ((1, 1), (2, 2)),
            },
            "the images are too small",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_plan_refuses_contradictions(plan_2d, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(plan_2d, **change)


@pytest.mark.parametrize("value", [1.5, "1", None, float("inf")])
@pytest.mark.parametrize("name", ["spatial_dims", "in_channels", "out_channels"])
def test_plan_takes_whole_numbers(plan_2d, name, value) -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        replace(plan_2d, **{name: value})
