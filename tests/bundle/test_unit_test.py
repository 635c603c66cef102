from __future__ import annotations

import ast
from dataclasses import replace

import pytest
import torch

from monai_xtiny.bundle.unit_test import render_unit_test, smallest_patch_size
from monai_xtiny.networks.dynunet import build_network


def constants(code: str) -> dict[str, object]:
    """The literals that the module gives names to."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def render(plan, name: str = "x_segmentation", is_raster: bool = False) -> str:
    return render_unit_test(plan, name=name, is_raster=is_raster)


HOSTILE = [
    "it's",
    'a "quoted" name',
    "back\\slash\\",
    '""" + __import__("os").system("touch pwned") + """',
    "{{ 7 * 7 }}{% raise %}",
    "Ünï \U0001f9ea",
    "\udcff not utf-8",
]


@pytest.mark.parametrize("is_raster", [False, True], ids=["nifti", "png"])
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_render_unit_test_takes_any_name_as_text(plan_2d, name, is_raster) -> None:
    code = render(plan_2d, name, is_raster)
    assert constants(code)["BUNDLE_NAME"] == name
    plain = render(plan_2d, "x_segmentation", is_raster)
    assert code.isascii()
    # The name changes one line, and the one literal in it.
    differing = [
        (a, b) for a, b in zip(code.splitlines(), plain.splitlines(), strict=True) if a != b
    ]
    assert len(differing) == 1 and differing[0][0].startswith("BUNDLE_NAME = ")


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_render_unit_test_stacks_slices_along_their_axis(plan_2d, slice_axis) -> None:
    plan = replace(plan_2d, slice_axis=slice_axis, spacing=(0.5, 0.75))
    found = constants(render(plan))
    assert found["PATCH_SIZE"] == [16, 16]
    shape, spacing = list(found["IMAGE_SHAPE"]), list(found["SPACING"])
    assert shape.pop(slice_axis) == 3 and shape == [19, 21]
    spacing.pop(slice_axis)
    assert spacing == [0.5, 0.75]


def test_render_unit_test_makes_images_of_the_plans_kind(plan_2d, plan_3d) -> None:
    volumes = constants(render(plan_3d))
    assert (volumes["IMAGE_SHAPE"], volumes["SPACING"]) == ((11, 13, 5), (1.5, 1.5, 5.0))
    assert (volumes["IN_CHANNELS"], volumes["NUM_CLASSES"]) == (2, 3)
    flat = constants(render(plan_2d))
    assert (flat["IMAGE_SHAPE"], flat["SPACING"]) == ((19, 21), (1.0, 1.0, 1.0))
    pictures = render(replace(plan_2d, in_channels=3), is_raster=True)
    assert "nibabel" not in pictures and "_0000.png" in pictures
    assert "PIL" not in render(plan_3d)


@pytest.mark.parametrize("name", ["plan_2d", "plan_3d"])
def test_smallest_patch_size_is_the_smallest_that_trains(request, name) -> None:
    plan = request.getfixturevalue(name)
    network = build_network(plan, 4, seed=0).train()
    size = smallest_patch_size(plan)
    assert network(torch.randn(1, plan.in_channels, *size)).shape[2:] == size
    half = [edge // 2 for edge in size]
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(torch.randn(1, plan.in_channels, *half))
