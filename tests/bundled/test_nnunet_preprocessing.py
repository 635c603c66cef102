from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_xtiny.bundled.nnunet_preprocessing import (
    PreprocessCase,
    Preprocessing,
    Resampling,
    drop_slice_axis,
    image_spacing,
    in_file_order,
    in_nnunet_order,
    prepare_image,
    preprocess,
    preprocess_label,
    read_preprocessing,
    resample_channels,
    restore_image_logits,
    restore_logits,
)

Z_SCORE = "ZScoreNormalization"
CT = {"mean": 80.0, "std": 30.0, "percentile_00_5": 10.0, "percentile_99_5": 190.0}


def settings(
    *schemes: str,
    spacing: tuple[float, ...] = (1, 1, 1),
    order: tuple[int, ...] = (0, 1, 2),
    mask: bool = False,
) -> Preprocessing:
    """Settings of a plans file."""
    names = schemes or (Z_SCORE,)
    return Preprocessing(order, spacing, names, (mask,) * len(names), (CT,) * len(names))


def volume(shape: tuple[int, ...] = (9, 11, 13), channels: int = 1) -> np.ndarray:
    """Intensities from 1 to 250."""
    found = np.random.default_rng(0).uniform(1, 250, (channels, *shape))
    return found.astype(np.float32)


def test_preprocess_crops_to_what_any_channel_has() -> None:
    image = volume(channels=2)
    image[:, :2] = 0
    image[0, ..., -3:] = 0
    found, placement = preprocess(image, (1, 1, 1), settings(Z_SCORE, Z_SCORE))
    assert placement.box == (slice(2, 9), slice(0, 11), slice(0, 13))
    inside = image[1, 2:].astype(np.float64)
    assert np.allclose(found[1], (inside - inside.mean()) / inside.std(), atol=1e-5)


def test_preprocess_of_nothing_keeps_the_whole() -> None:
    _, placement = preprocess(np.zeros((1, 4, 5, 6)), (1, 1, 1), settings("NoNormalization"))
    assert placement.box == (slice(0, 4), slice(0, 5), slice(0, 6))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("NoNormalization", lambda x: x),
        ("RGBTo01Normalization", lambda x: x / 255),
        ("RescaleTo01Normalization", lambda x: (x - x.min()) / (x.max() - x.min())),
        ("CTNormalization", lambda x: (np.clip(x, 10, 190) - 80) / 30),
        (Z_SCORE, lambda x: (x - x.mean()) / x.std()),
    ],
)
def test_preprocess_normalizes_by_the_scheme(scheme, expected) -> None:
    image = volume()
    found, _ = preprocess(image, (1, 1, 1), settings(scheme))
    assert found.dtype == np.float32
    assert np.allclose(found, expected(image.astype(np.float64)), atol=1e-5)


def test_preprocess_takes_z_scores_within_the_filled_mask() -> None:
    image = volume()
    image[:, :2, :2] = 0
    image[:, 4:6, 5, 6] = 0  # a hole, which nnU-Net fills
    found, placement = preprocess(image, (1, 1, 1), settings(mask=True))
    mask = ndimage.binary_fill_holes(image[0] != 0)
    inside = image[0][mask].astype(np.float64)
    assert np.allclose(found[0][mask], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert not found[0][~mask].any()
    assert np.array_equal(placement.nonzero, mask)


def test_preprocess_leaves_its_argument_alone() -> None:
    image = volume()
    before = image.copy()
    preprocess(image, (1, 1, 1), settings("CTNormalization"))
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (volume(channels=2), "has 2 channels, and nnU-Net planned 1"),
        (volume() * 2, "and nnU-Net planned 0 to 255"),
    ],
    ids=["channels", "colors"],
)
def test_preprocess_refuses_other_images(image, words) -> None:
    with pytest.raises(ValueError, match=words):
        preprocess(image, (1, 1, 1), settings("RGBTo01Normalization"))


def test_preprocess_of_a_2d_plan_keeps_the_slices() -> None:
    found, placement = preprocess(volume(), (4, 1, 1), settings(spacing=(2, 0.5)))
    assert found.shape == (1, 9, 6, 26)  # 11 / 2 = 5.5 is rounded to even
    assert placement.target_spacing == (4, 2, 0.5)


def test_resample_channels_equals_zoom_within_the_range() -> None:
    image = volume()
    found = resample_channels(image, (12, 9, 13), (1, 1, 1), (0.75, 1.2, 1), Resampling(3))
    zoomed = ndimage.zoom(
        image[0].astype(float), (12 / 9, 9 / 11, 1), order=3, mode="nearest", grid_mode=True
    )
    expected = np.clip(zoomed, image.min(), image.max()).astype(np.float32)
    assert np.array_equal(found[0], expected)


def test_resample_channels_takes_thick_slices_one_by_one() -> None:
    image = volume()
    found = resample_channels(image, (18, 9, 13), (4, 1, 1), (2, 1.2, 1), Resampling(3))
    same = (1, 1, 1)
    first = np.stack(
        [
            resample_channels(part[None, None], (1, 9, 13), same, same, Resampling(3))[0, 0]
            for part in image[0]
        ]
    )
    assert np.allclose(found[0], first.repeat(2, axis=0), atol=1e-4)


def test_resample_channels_of_two_thick_axes_goes_in_one_step() -> None:
    # Two axes are the coarsest: neither can be left out.
    image = volume()
    found = resample_channels(image, (9, 11, 20), (4, 4, 1), (4, 4, 0.65), Resampling(3))
    forced = resample_channels(image, (9, 11, 20), (4, 4, 1), (4, 4, 0.65), Resampling(3, 0, False))
    assert np.array_equal(found, forced)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_restore_logits_undoes_transposition_and_crop(order) -> None:
    image = volume()
    image[:, :2] = 0
    image[..., -4:] = 0
    data, placement = preprocess(image, (3, 2, 1), settings("NoNormalization", order=order,
                                 spacing=tuple((3, 2, 1)[axis] for axis in order)))  # fmt: skip
    restored = restore_logits(
        np.concatenate([data * 0, data]).astype(np.float32), placement, settings(order=order)
    )
    assert np.array_equal(restored.argmax(0), (image[0] > 0).astype(int))
    assert np.array_equal(restored[1, 2:, :, :-4], image[0, 2:, :, :-4])


def test_restore_logits_leaves_background_alone_outside() -> None:
    image = volume()
    image[:, :3] = 0
    data, placement = preprocess(image, (1, 1, 1), settings())
    logits = np.full((3, *data.shape[1:]), 5, np.float16)
    restored = restore_logits(logits, placement, settings())
    assert restored.dtype == np.float16
    assert not restored[:, :3].argmax(0).any()


def test_preprocess_label_is_nearest_to_its_shares() -> None:
    image = volume((8, 8, 8))
    label = np.zeros((8, 8, 8), np.int16)
    label[2:6, 2:6, 2:6] = 2
    data, placement = preprocess(image, (2, 2, 2), settings())
    found = preprocess_label(label, placement, data.shape[1:])
    assert found.shape == (16, 16, 16)
    assert set(np.unique(found)) == {0, 2}
    assert abs(int((found == 2).sum()) - 512) < 60
    same = preprocess_label(label, placement, label.shape)
    assert np.array_equal(same, label)


def test_prepare_image_and_back_keep_the_grid_of_the_file() -> None:
    image = MetaTensor(torch.rand(1, 13, 11, 9) + 1, meta={"pixdim": np.array([1, 0.5, 2, 3])})
    image.affine = torch.diag(torch.tensor([0.5, 2, 3, 1], dtype=torch.float64))
    wanted = settings("NoNormalization", order=(1, 2, 0), spacing=(2, 0.5, 3))
    data, placement = prepare_image(image, wanted)
    assert data.shape == (1, 11, 13, 9)
    both = torch.cat([data * 0, data])
    back = restore_image_logits(both, placement, wanted, spatial_dims=3)
    assert torch.equal(back[1], image[0].as_subclass(torch.Tensor))


def test_image_spacing_of_a_turned_volume_follows_its_axes() -> None:
    image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"pixdim": np.array([1, 0.7, 2, 3], "f4")})
    image.affine = torch.tensor(
        [[0, 2, 0, 0], [-0.7, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]], dtype=torch.float64
    ).T
    assert image_spacing(image)[0] == 3
    assert sorted(image_spacing(image)) == [float(np.float32(0.7)), 2.0, 3.0]


def test_image_spacing_of_a_2d_image() -> None:
    assert image_spacing(torch.zeros(3, 20, 30)) == (999.0, 1.0, 1.0)
    image = MetaTensor(torch.zeros(1, 4, 5), meta={"pixdim": np.array([1, 0.5, 2, 1])})
    image.affine = torch.diag(torch.tensor([0.5, 2, 1, 1], dtype=torch.float64))
    assert image_spacing(image) == (2 * 999.0, 2.0, 0.5)


def test_drop_slice_axis_keeps_the_distance_of_slices() -> None:
    meta = {"pixdim": np.array([1, 0.5, 2, 5]), "dim": np.array([3, 4, 6, 1])}
    image = MetaTensor(torch.rand(1, 4, 6, 1), affine=torch.diag(torch.tensor([0.5, 2, 5, 1])),
                       meta=meta)  # fmt: skip
    volume = MetaTensor(torch.rand(1, 4, 6, 2))
    found = drop_slice_axis({"image": image, "label": volume})
    assert torch.equal(found["image"], image[..., 0]) and found["label"] is volume
    assert image_spacing(found["image"]) == (5.0, 2.0, 0.5)
    assert found["image"].meta["spatial_shape"].tolist() == [4, 6]
    assert drop_slice_axis({"image": image, "label": "liver"})["label"] == "liver"


def test_in_file_order_undoes_in_nnunet_order() -> None:
    for shape in ((2, 5, 6), (2, 5, 6, 7)):
        image = torch.rand(shape)
        array = in_nnunet_order(image)
        assert array.shape == ((2, 1, 6, 5) if len(shape) == 3 else (2, 7, 6, 5))
        plain = settings()
        assert np.array_equal(in_file_order(array, plain, len(shape) - 1), image.numpy())


def test_preprocess_case_moves_image_and_label_alike() -> None:
    image = MetaTensor(torch.rand(1, 12, 10, 8) + 1)
    label = MetaTensor((image > 1.5).float())
    wanted = settings("NoNormalization", order=(2, 0, 1))
    found = PreprocessCase(wanted)({"image": image, "label": label})
    assert torch.equal(found["image"].as_subclass(torch.Tensor), image.as_subclass(torch.Tensor))
    assert torch.equal(found["label"].as_subclass(torch.Tensor), label.as_subclass(torch.Tensor))
    wanted = settings("NoNormalization", spacing=(0.5, 1, 2))
    found = PreprocessCase(wanted)({"image": image, "label": label})
    assert found["image"].shape == found["label"].shape == (1, 6, 10, 16)


def test_read_preprocessing_takes_nnunets_words(golden) -> None:
    plans = golden["nnUNetPlans_Dataset004_Hippocampus"]
    found = read_preprocessing(plans, plans["configurations"]["3d_fullres"])
    assert found.normalization_schemes == (Z_SCORE,)
    assert found.image_resampling == Resampling(3, 0, None)
    assert found.logits_resampling == Resampling(1, 0, None)
    assert found.intensities[0]["percentile_00_5"] == 28.0


KEYS = ("resampling_fn_data_kwargs", "resampling_fn_probabilities_kwargs")


def test_read_preprocessing_has_nnunets_defaults(golden) -> None:
    # Those of resample_data_or_seg_to_shape(order=3, order_z=0, force_separate_z=False).
    plans = golden["nnUNetPlans_Dataset004_Hippocampus"]
    changed = {**plans["configurations"]["3d_fullres"], **{key: {} for key in KEYS}}
    found = read_preprocessing(plans, changed)
    assert found.image_resampling == found.logits_resampling == Resampling(3, 0, False)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("order", -1, "order is -1: it must be 0, 1, 2, 3, 4 or 5"),
        ("order", 6, "order is 6: it must be 0"),
        ("order", 1.7, "order is 1.7: it must be 0"),
        ("order", float("inf"), "order is inf: it must be 0"),
        ("order", True, "order is True: it must be 0"),
        ("order", None, "order is None: it must be 0"),
        ("order_z", 1e30, r"order_z is 1e\+30: it must be 0"),
        ("force_separate_z", 0, "force_separate_z is 0: it must be true, false or null"),
        ("force_separate_z", "false", "force_separate_z is 'false': it must be true"),
        ("is_seg", True, "is_seg is True: only False is supported"),
        ("separate_z_anisotropy_threshold", 5, "separate_z_.* is 5: only 3 is supported"),
        ("mode", "edge", "is {.*'mode': 'edge'}: it must be a dictionary of is_seg, order, order_"),
    ],
)
def test_read_preprocessing_refuses_other_resamplings(golden, key, name, value, words) -> None:
    plans = golden["nnUNetPlans_Dataset004_Hippocampus"]
    settings = plans["configurations"]["3d_fullres"]
    changed = {**settings, key: {**settings[key], name: value}}
    with pytest.raises(ValueError, match=f"^{key}:? ?{words}"):
        read_preprocessing(plans, changed)


@pytest.mark.parametrize("options", [None, [], 3, "order"], ids=repr)
def test_read_preprocessing_refuses_options_that_are_none(golden, options) -> None:
    plans = golden["nnUNetPlans_Dataset004_Hippocampus"]
    changed = {**plans["configurations"]["3d_fullres"], KEYS[0]: options}
    with pytest.raises(ValueError, match=f"^{KEYS[0]} is .*: it must be a dictionary of is_seg"):
        read_preprocessing(plans, changed)


@pytest.mark.parametrize("masks", [[], ["false"], [0], [True, True], None, "x"], ids=repr)
def test_read_preprocessing_wants_a_mask_of_every_channel(golden, masks) -> None:
    plans = golden["nnUNetPlans_Dataset004_Hippocampus"]
    changed = {**plans["configurations"]["2d"], "use_mask_for_norm": masks}
    with pytest.raises(ValueError, match="use_mask_for_norm is .*: it must be a list of true or"):
        read_preprocessing(plans, changed)


def test_read_preprocessing_refuses_an_unknown_scheme(golden) -> None:
    plans = golden["nnUNetPlans_Dataset004_Hippocampus"]
    changed = {**plans["configurations"]["2d"], "normalization_schemes": ["Mine"]}
    with pytest.raises(ValueError, match="normalization Mine is unknown"):
        read_preprocessing(plans, changed)
