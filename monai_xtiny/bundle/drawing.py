"""The plan of a U-Net as it is drawn: two arms of bars that meet at the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from monai_xtiny.plan.unet_plan import UNetPlan

# Of the drawing, in its own units: the widest bar, the narrowest that is still seen, a row.
BAR, HAIRLINE, ROW = 110.0, 1.5, 30.0
_TOP = 40.0


@dataclass(frozen=True)
class DrawnStage:
    """One stage of the U: what it computes on, and how wide both networks are there.

    Args:
        size: of the feature maps of one patch, (x, y[, z]).
        stride: of its first convolution.
        kernel_size: of its convolutions.
        features: channels of the network.
        full_features: channels of the full network.
        y: height of its row in the drawing.
        bar: length of the network's bar.
        full_bar: length of the full network's.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    kernel_size: tuple[int, ...]
    features: int
    full_features: int
    y: float
    bar: float
    full_bar: float


def drawn_stages(plan: UNetPlan, features_per_stage: Sequence[int]) -> tuple[DrawnStage, ...]:
    """The stages of a network and of the full one of its plan, from the first to the bottleneck.

    Bars are as long as stages are wide, on one scale; what would vanish is a hairline.

    Args:
        plan: of the full network.
        features_per_stage: channels of the network's stages.

    Raises:
        ValueError: the network has another number of stages than the plan.

    >>> plan = UNetPlan(2, 1, 2, (1, 1), (32, 48), ((3, 3),) * 3, ((1, 1), (2, 2), (2, 2)),
    ...     (32, 64, 128))
    >>> [(stage.size, stage.full_bar, stage.bar) for stage in drawn_stages(plan, (32, 32, 32))]
    [((32, 48), 27.5, 27.5), ((16, 24), 55.0, 27.5), ((8, 12), 110.0, 27.5)]
    """
    full = plan.features_per_stage
    if len(features_per_stage) != len(full):
        raise ValueError(
            f"{len(features_per_stage)} features {tuple(features_per_stage)} for {len(full)} "
            "stages: give one per stage"
        )
    scale = BAR / max(*full, *features_per_stage)
    stages = []
    for index, (own, wide) in enumerate(zip(features_per_stage, full, strict=True)):
        passed = plan.strides[: index + 1]
        size = tuple(
            edge // prod(stride[axis] for stride in passed)
            for axis, edge in enumerate(plan.patch_size)
        )
        stages.append(
            DrawnStage(
                size=size,
                stride=plan.strides[index],
                kernel_size=plan.kernel_size[index],
                features=own,
                full_features=wide,
                y=_TOP + ROW * index,
                bar=round(max(own * scale, HAIRLINE), 2),
                full_bar=round(max(wide * scale, HAIRLINE), 2),
            )
        )
    return tuple(stages)
