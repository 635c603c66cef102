"""The test in the Model Zoo's style that is emitted beside a bundle."""

from __future__ import annotations

from typing import Any

from monai_xtiny.bundle.templates import template_environment
from monai_xtiny.plan.unet_plan import UNetPlan

UNIT_TEST_TEMPLATE = "unit_test.py.jinja"
# Pixels that the images have more than the patch, one entry per axis: windows must slide and pad.
_MARGIN = (3, 5, 1)
_NUM_SLICES = 3
_SLICE_SPACING = 5.0


def render_unit_test(plan: UNetPlan, *, name: str, is_raster: bool) -> str:
    """Python code that trains, evaluates and infers with a bundle on random images.

    The images are of the plan's kind and as small as its strides allow. The code needs what the
    bundle needs, and no package besides; it looks for the bundle beside itself, and where the Model
    Zoo keeps bundles (``models``, seen from ``ci/unit_tests``).

    Args:
        plan: what the bundle's network was planned for.
        name: of the bundle's folder; whatever its characters, they come out as text.
        is_raster: whether the images are PNG, not NIfTI.
    """
    patch_size = smallest_patch_size(plan)
    image_shape = [size + more for size, more in zip(patch_size, _MARGIN, strict=False)]
    spacing = [float(value) for value in plan.spacing]
    if plan.slice_axis is not None:
        image_shape.insert(plan.slice_axis, _NUM_SLICES)
        spacing.insert(plan.slice_axis, _SLICE_SPACING)
    spacing += [1.0] * (3 - len(spacing))  # NIfTI's affine has three axes
    environment = template_environment()
    environment.filters["literal"] = _literal
    return environment.get_template(UNIT_TEST_TEMPLATE).render(
        name=name,
        in_channels=plan.in_channels,
        num_classes=plan.out_channels,
        patch_size=list(patch_size),
        image_shape=tuple(image_shape),
        spacing=tuple(spacing),
        is_raster=is_raster,
        is_rgb=is_raster and plan.in_channels == 3,
        ending=".png" if is_raster else ".nii.gz",
    )


def smallest_patch_size(plan: UNetPlan) -> tuple[int, ...]:
    """The smallest patch that the network takes: ``2 * prod(strides)`` along each axis.

    Instance norm has nothing to normalize in a last stage of one pixel.
    """
    return tuple(2 * factor for factor in plan.divisor)


def _literal(value: Any) -> str:
    """Python's literal for a value, in ASCII, with double quotes where that changes nothing."""
    text = ascii(value)
    if isinstance(value, str) and not {"'", '"'} & set(value):
        return f'"{text[1:-1]}"'
    return text
