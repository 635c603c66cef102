"""The widths that are tried, and the features of each stage under a cap."""

from __future__ import annotations

from monai_xtiny.plan.unet_plan import UNetPlan


def width_ladder(plan: UNetPlan) -> tuple[int, ...]:
    """Width caps to try, widest first: the full network's, halved down to 1.

    Kimbowa et al. 2026 (arXiv:2605.09639); integer division, so 3D gives 320, ..., 10, 5, 2, 1.

    >>> width_ladder(UNetPlan(3, 1, 2, (1, 1, 1), (64, 64, 64), ((3, 3, 3),) * 5,
    ...     ((1, 1, 1),) + ((2, 2, 2),) * 4, (32, 64, 128, 256, 320)))
    (320, 160, 80, 40, 20, 10, 5, 2, 1)
    """
    widths = [plan.features_per_stage[-1]]
    while widths[-1] > 1:
        widths.append(widths[-1] // 2)
    return tuple(widths)


def cap_features(plan: UNetPlan, max_features: int | None = None) -> tuple[int, ...]:
    r"""Features of each stage under a cap.

    .. math:: f_s^{(c)} = \min(c, f_s)

    Args:
        plan: the full network's plan.
        max_features: the cap ``c``; ``None`` leaves the full network.

    Raises:
        ValueError: the cap is not positive.
    """
    if max_features is None:
        return plan.features_per_stage
    if max_features < 1:
        raise ValueError(f"max_features is {max_features}: give a width of at least 1")
    return tuple(min(max_features, features) for features in plan.features_per_stage)


def max_aligned_width(plan: UNetPlan) -> int:
    """The smallest width that leaves the features at full resolution uncapped.

    >>> max_aligned_width(UNetPlan(3, 1, 2, (1, 1, 1), (64, 64, 64), ((3, 3, 3),) * 5,
    ...     ((1, 1, 1),) + ((2, 2, 2),) * 4, (32, 64, 128, 256, 320)))
    40
    """
    return min(width for width in width_ladder(plan) if width >= plan.features_per_stage[0])
