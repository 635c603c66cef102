from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from monai_xtiny.bundled.nnunet_preprocessing import preprocess, read_preprocessing
from monai_xtiny.nnunet.cases import (
    find_nnunet_images,
    find_preprocessed,
    patch_transform,
    read_preprocessed,
    turn_image,
)
from monai_xtiny.nnunet.folders import NnunetDataSet
from monai_xtiny.plan.nnunet import load_nnunet_plan, resolve_configuration
from tests.conftest import texture
from tests.nnunet.planned import NAME, write_case, write_planned


def planned(tmp_path: Path, raw: Path | None = None, **options) -> tuple[NnunetDataSet, dict, dict]:
    """A planned data set, its plans, and the settings of its 2D configuration."""
    folder = write_planned(tmp_path, **options)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    return NnunetDataSet(NAME, folder, raw), plans, resolve_configuration(plans, "2d")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".b2nd"])
def test_preprocessed_cases_are_read_in_every_format_and_labels_in_none(tmp_path, suffix) -> None:
    if suffix == ".b2nd":
        pytest.importorskip("blosc2", reason="pip install 'monai-xtiny[nnunet]' for blosc2")
    folder = write_planned(tmp_path, suffix=suffix) / "nnUNetPlans_2d"
    image = np.random.default_rng(0).normal(size=(1, 3, 5, 7)).astype(np.float32)
    write_case(folder / f"case9{suffix}", image)
    cases = find_preprocessed(folder)
    assert [case.name for case in cases] == ["case0", "case1", "case2", "case9"]
    assert np.array_equal(read_preprocessed(cases[-1].images[0]), image)


def test_read_preprocessed_reads_no_pickle(tmp_path) -> None:
    np.save(tmp_path / "case.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_preprocessed(tmp_path / "case.npy")


@pytest.mark.parametrize("image", [np.zeros((3, 4, 5)), np.zeros((1, 3, 4, 5), int)])
def test_read_preprocessed_refuses_other_arrays(tmp_path, image) -> None:
    np.save(tmp_path / "case.npy", image)
    with pytest.raises(ValueError, match=r"it holds .*, not nnU-Net's \(C, z, y, x\)"):
        read_preprocessed(tmp_path / "case.npy")


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_turn_image_undoes_the_transposition(order) -> None:
    stored = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)  # C, z, y, x
    transposed = stored.transpose(0, *(axis + 1 for axis in order))
    assert np.array_equal(turn_image(transposed, order).numpy(), stored.transpose(0, 3, 2, 1))


def test_a_3d_patch_is_the_middle_of_the_image(tmp_path) -> None:
    data_set, plans, _ = planned(tmp_path, folder="nnUNetPlans_3d_fullres")
    settings = resolve_configuration(plans, "3d_fullres")
    plan = load_nnunet_plan(
        data_set.plans_path("nnUNetPlans"), "3d_fullres", in_channels=1, out_channels=3
    )
    cases, images = find_nnunet_images(data_set, plans, settings)
    patch = patch_transform(images, plan, (0, 1, 2))({"image": cases[0].images})["image"]
    stored = read_preprocessed(cases[0].images[0]).transpose(0, 3, 2, 1)  # 32, 40, 6 voxels
    expected = np.zeros((1, 16, 16, 8), np.float32)
    expected[..., 1:7] = stored[:, 8:24, 12:28]
    assert np.array_equal(patch.numpy(), expected)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["slices along z", "along x"])
def test_a_2d_patch_is_of_the_middle_slice_across_the_first_axis(tmp_path, order) -> None:
    data_set, plans, settings = planned(
        tmp_path, change=lambda plans: plans.update(transpose_forward=order), channels=2
    )
    plan = load_nnunet_plan(data_set.plans_path("nnUNetPlans"), "2d", in_channels=2, out_channels=3)
    cases, images = find_nnunet_images(data_set, plans, settings)
    patch = patch_transform(images, plan, order)({"image": cases[0].images})["image"]
    middle = read_preprocessed(cases[0].images[0])[:, 3, 4:36, 4:28]  # patch 32 x 24 of 40 x 32
    # The patch's axes in nnU-Net's order, the last of the volume first in MONAI's.
    expected = middle.transpose(0, 2, 1) if order[1] < order[2] else middle
    assert np.array_equal(patch.numpy(), expected)
    assert tuple(patch.shape[1:]) == plan.patch_size


def test_slices_without_content_are_passed_over(tmp_path) -> None:
    data_set, plans, settings = planned(tmp_path)
    image = np.zeros((1, 5, 32, 24), np.float32)
    image[0, 4] = texture((32, 24), seed=0)
    write_case(data_set.preprocessed / "nnUNetPlans_2d" / "case0.npz", image)
    plan = load_nnunet_plan(data_set.plans_path("nnUNetPlans"), "2d", in_channels=1, out_channels=3)
    cases, images = find_nnunet_images(data_set, plans, settings)
    patch = patch_transform(images, plan, (0, 1, 2))({"image": cases[0].images})["image"]
    assert torch.equal(patch[0].T, torch.from_numpy(image[0, 4]))


def write_raw(folder: Path) -> np.ndarray:
    """A raw data set of one volume, (x, y, z)."""
    (folder / "imagesTr").mkdir(parents=True)
    volume = texture((24, 20, 8), seed=3).astype(np.float32) + 1
    nibabel.save(
        nibabel.Nifti1Image(volume, np.diag([1.0, 1.5, 3, 1])),
        folder / "imagesTr" / "case0_0000.nii.gz",
    )
    return volume


def test_raw_images_are_preprocessed_where_no_case_is(tmp_path) -> None:
    raw = tmp_path / "raw" / NAME
    volume = write_raw(raw)
    data_set, plans, settings = planned(tmp_path / "preprocessed", raw, folder="elsewhere")
    cases, images = find_nnunet_images(data_set, plans, settings)
    found = images({"image": list(cases[0].images)})["image"]
    expected, _ = preprocess(
        volume.transpose(2, 1, 0)[None], (3, 1.5, 1), read_preprocessing(plans, settings)
    )
    assert np.allclose(found.numpy(), expected.transpose(0, 3, 2, 1), atol=1e-5)


def test_find_images_says_what_is_missing(tmp_path) -> None:
    data_set, plans, settings = planned(tmp_path / "preprocessed", folder="elsewhere")
    with pytest.raises(FileNotFoundError, match="no preprocessed cases in .*: nnUNetv2_preprocess"):
        find_nnunet_images(data_set, plans, settings)
    write_raw(tmp_path / "raw" / NAME)
    with_raw = NnunetDataSet(NAME, data_set.preprocessed, tmp_path / "raw" / NAME)
    with pytest.raises(ValueError, match="reads its images by Tiff3DIO, which is not supported"):
        find_nnunet_images(with_raw, {**plans, "image_reader_writer": "Tiff3DIO"}, settings)
    others = {**settings, "resampling_fn_data": "resample_torch_fornnunet"}
    with pytest.raises(ValueError, match="resamples them by resample_torch_fornnunet, which is no"):
        find_nnunet_images(with_raw, plans, others)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"order": 3, "separate_z_anisotropy_threshold": 5}, "threshold is 5: only 3 is supported"),
        (None, "lacks 'resampling_fn_data_kwargs'"),
    ],
    ids=["threshold", "none"],
)
def test_raw_images_are_not_resampled_otherwise_than_nnunet_does(tmp_path, kwargs, message) -> None:
    raw = tmp_path / "raw" / NAME
    write_raw(raw)
    data_set, plans, settings = planned(tmp_path / "preprocessed", raw, folder="elsewhere")
    settings.pop("resampling_fn_data_kwargs")
    given = {**settings, **({"resampling_fn_data_kwargs": kwargs} if kwargs else {})}
    with pytest.raises(
        ValueError, match=f"{NAME} is not preprocessed, .*{message}.*: nnUNetv2_pre"
    ):
        find_nnunet_images(data_set, plans, given)


def test_without_blosc2_raw_images_are_read_or_it_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    data_set, plans, settings = planned(tmp_path / "preprocessed", suffix=".npy")
    folder = data_set.preprocessed / "nnUNetPlans_2d"
    for path in sorted(folder.glob("case?.npy")):
        path.rename(path.with_suffix(".b2nd"))
    with pytest.raises(ImportError, match="is a file of blosc2, which .*: pip install blosc2, or"):
        find_nnunet_images(data_set, plans, settings)
    write_raw(tmp_path / "raw" / NAME)
    with_raw = NnunetDataSet(NAME, data_set.preprocessed, tmp_path / "raw" / NAME)
    assert find_nnunet_images(with_raw, plans, settings)[0][0].kind == "nifti"
