from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from monai_xtiny.data import headers
from monai_xtiny.data.case import Case, Header
from monai_xtiny.data.cases import find_cases
from monai_xtiny.plan.planner import (
    MAX_HEADERS,
    Fingerprint,
    extract_fingerprint,
    plan_fingerprint,
    plan_images,
)
from monai_xtiny.plan.unet_plan import UNetPlan
from tests.conftest import DATA, write_nifti, write_png

REFERENCE = json.loads((DATA / "nnunet_plans.json").read_text())["cases"]
GOLDEN = json.loads((DATA / "golden_plans.json").read_text())["plans"]
LABELS = {"Dataset004_Hippocampus": 3}


def reference_cases():
    """Every configuration that nnU-Net itself planned."""
    for case in REFERENCE:
        for name, expected in case["configurations"].items():
            if name in ("2d", "3d_fullres"):
                yield pytest.param(case, name, expected, id=f"{case['name']} {name}")


def in_array_order(values, transpose_forward) -> tuple:
    """nnU-Net's transposed (z, y, x) back to (x, y[, z])."""
    axes = transpose_forward[-len(values) :]
    return tuple(value for _, value in sorted(zip(axes, values, strict=True), reverse=True))


def check_against_nnunet(plan: UNetPlan, expected: dict, transpose_forward) -> None:
    """Compare what nnU-Net wrote with a plan, all in array order."""

    def turn(values) -> tuple:
        return in_array_order(values, transpose_forward)

    assert plan.patch_size == turn(expected["patch_size"])
    assert plan.strides == tuple(turn(stride) for stride in expected["strides"])
    assert plan.kernel_size == tuple(turn(kernel) for kernel in expected["kernel_sizes"])
    assert plan.features_per_stage == tuple(expected["features_per_stage"])
    assert plan.spacing == pytest.approx(turn(expected["spacing"]), rel=1e-5)


@pytest.mark.parametrize("case, name, expected", reference_cases())
def test_plan_fingerprint_equals_nnunets_planner(case, name, expected) -> None:
    of_images = all(shape[0] == 1 and spacing[0] == 999 for shape, spacing in zip(
        case["shapes"], case["spacings"], strict=True))  # fmt: skip
    first = 1 if of_images else 0
    fingerprint = Fingerprint(
        tuple(tuple(shape[first:][::-1]) for shape in case["shapes"]),
        tuple(tuple(spacing[first:][::-1]) for spacing in case["spacings"]),
        case["num_channels"],
    )
    dims = 2 if name == "2d" else 3
    if len(expected["strides"]) < 3:
        with pytest.raises(ValueError, match="a U-Net needs 3"):
            plan_fingerprint(fingerprint, spatial_dims=dims, out_channels=case["num_labels"])
        return
    plan = plan_fingerprint(fingerprint, spatial_dims=dims, out_channels=case["num_labels"])
    check_against_nnunet(plan, expected, case["transpose_forward"])
    if dims == 2 and not of_images:
        assert plan.slice_axis == 2 - case["transpose_forward"][0]
    else:
        assert plan.slice_axis is None


def test_plan_fingerprint_is_compared_on_more_than_100_data_sets() -> None:
    assert len(REFERENCE) >= 100


@pytest.mark.parametrize(
    "dataset, name", [(d, n) for d, plan in GOLDEN.items() for n in plan["configurations"]]
)
def test_plan_images_equals_nnunet_on_real_data(real_data, dataset, name) -> None:
    plan = plan_images(
        real_data / dataset, spatial_dims=int(name[0]), out_channels=LABELS.get(dataset, 2)
    )
    expected = GOLDEN[dataset]["configurations"][name]
    check_against_nnunet(plan, expected, [0, 1, 2])
    assert plan.in_channels == len(expected["normalization_schemes"])


def test_plan_fingerprint_of_thick_slices_pools_in_plane_first() -> None:
    plan = plan_fingerprint(Fingerprint(((237, 208, 9),), ((1.56, 1.56, 10.0),), 1))
    assert plan.strides[1] == (2, 2, 1)
    assert plan.kernel_size[0] == (3, 3, 1)


def test_plan_images_turns_axes_to_ras(tmp_path) -> None:
    # Stored as (z, x, y): the thick axis is the first in the file.
    affine = np.array([[0, 1.5, 0, 0], [0, 0, 1.5, 0], [8.0, 0, 0, 0], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a.nii.gz", (10, 48, 64), affine=affine)
    plan = plan_images(tmp_path)
    assert plan.patch_size == (48, 64, 10)
    assert plan.spacing == (1.5, 1.5, 8.0)
    sliced = plan_images(tmp_path, spatial_dims=2)
    assert sliced.slice_axis == 2
    assert sliced.patch_size == (48, 64)
    assert sliced.pixdim == (1.5, 1.5, -1.0)


def test_plan_images_crops_empty_borders_as_nnunet_does(tmp_path) -> None:
    values = np.zeros((64, 64, 64), dtype=np.float32)
    values[10:42, 5:53, 20:60] = np.random.default_rng(0).uniform(1, 2, (32, 48, 40))
    write_nifti(tmp_path / "a.nii.gz", values=values)
    fingerprint = extract_fingerprint(find_cases(tmp_path))
    assert fingerprint.shapes == ((32, 48, 40),)


def test_extract_fingerprint_scales_headers_by_the_sampled_share(tmp_path) -> None:
    for index in range(6):
        values = np.zeros((40, 40, 20), dtype=np.float32)
        values[:, 10:30] = np.random.default_rng(index).uniform(1, 2, (40, 20, 20))
        write_nifti(tmp_path / f"{index}.nii.gz", values=values)
    fingerprint = extract_fingerprint(find_cases(tmp_path), num_images=2)
    assert fingerprint.shapes == ((40, 20, 20),) * 6


def test_extract_fingerprint_reads_a_seeded_sample_of_headers_side_by_side(
    tmp_path, monkeypatch
) -> None:
    first = write_png(tmp_path / "0.png", (64, 96))
    for index in range(1, 600):
        (tmp_path / f"{index}.png").symlink_to(first)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    read, seen = headers._read_header, []

    def recorded(case: Case) -> headers.Header:
        seen[-1].append((case.name, threading.get_ident()))
        return read(case)

    monkeypatch.setattr(headers, "_read_header", recorded)
    for seed in (1, 1, 2):
        seen.append([])
        extract_fingerprint(find_cases(tmp_path), num_images=4, seed=seed)
    names = [{name for name, _ in of_run} for of_run in seen]
    assert MAX_HEADERS <= len(names[0]) <= MAX_HEADERS + 4
    assert names[0] == names[1] != names[2]
    assert len({thread for _, thread in seen[0]}) > 1


def test_plan_images_of_png_is_width_height(tmp_path) -> None:
    write_png(tmp_path / "a.png", (64, 96, 3))
    plan = plan_images(tmp_path)
    assert (plan.spatial_dims, plan.in_channels, plan.slice_axis) == (2, 3, None)
    assert plan.patch_size == (96, 64)


def test_plan_images_refuses_3d_for_images(png_folder) -> None:
    with pytest.raises(ValueError, match="a 3D plan for single slices"):
        plan_images(png_folder, spatial_dims=3)


def test_plan_fingerprint_refuses_other_dimensions() -> None:
    with pytest.raises(ValueError, match="spatial_dims is 4"):
        plan_fingerprint(Fingerprint(((64, 64),), ((1.0, 1.0),), 1), spatial_dims=4)


def test_extract_fingerprint_refuses_an_image_that_is_not_as_its_header_says(tmp_path) -> None:
    write_nifti(tmp_path / "a.nii", (20, 24, 18))
    cases = find_cases(tmp_path)
    headers = {cases[0]: Header((24, 20, 18), (1.0, 1.0, 1.0), 1)}  # MONAI's reader turned it
    message = r"'a.nii' is read as \(20, 24, 18\) voxels, and its header says \(24, 20, 18\): conv"
    with pytest.raises(ValueError, match=message):
        extract_fingerprint(cases, headers=headers)
