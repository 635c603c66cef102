from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, Orientation, Spacing

from monai_xtiny.plan.preprocessing import DATA_KINDS, preprocessing_fragment

AFFINE = np.array([[0, 1.5, 0, 0], [0, 0, -2.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
SPACING = [2.0, 1.5, 3.0]


def parsed(fragment: list[dict], **constants) -> Compose:
    """The transforms that MONAI makes of the fragment in a config."""
    config = {"steps": {"_target_": "Compose", "transforms": fragment}, **constants}
    return ConfigParser(json.loads(json.dumps(config))).get_parsed_content("steps")


def volume(seed: int = 0) -> MetaTensor:
    values = torch.rand((2, 7, 12, 10), generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, affine=torch.as_tensor(AFFINE))


@pytest.mark.parametrize("kind", DATA_KINDS)
def test_preprocessing_fragment_survives_json(kind) -> None:
    fragment = preprocessing_fragment(kind, ("image", "label"))
    assert json.loads(json.dumps(fragment)) == fragment


@pytest.mark.parametrize("kind", ["volumes", "slices"])
def test_preprocessing_fragment_turns_resamples_and_normalizes(kind) -> None:
    spacing = SPACING if kind == "volumes" else [*SPACING[:2], -1.0]
    made = parsed(preprocessing_fragment(kind), spacing=spacing)({"image": volume()})["image"]
    turned = Orientation("RAS", labels=None)(volume())
    expected = NormalizeIntensity(channel_wise=True)(Spacing(spacing, mode="bilinear")(turned))
    assert made.shape == expected.shape
    assert torch.equal(made.as_tensor(), expected.as_tensor())


def test_preprocessing_fragment_of_images_normalizes_channels_only() -> None:
    image = torch.rand(3, 8, 9)
    made = parsed(preprocessing_fragment("images"))({"image": image, "label": image})
    assert torch.equal(made["image"], NormalizeIntensity(channel_wise=True)(image))
    assert torch.equal(made["label"], image)


@pytest.mark.parametrize("keys", [["image", "label"], "@both"], ids=["list", "id"])
def test_preprocessing_fragment_keeps_the_values_of_labels(keys) -> None:
    label = MetaTensor(torch.rand(1, 7, 12, 10).mul(4).floor(), affine=torch.as_tensor(AFFINE))
    steps = parsed(
        preprocessing_fragment("volumes", keys), spacing=SPACING, both=["image", "label"]
    )
    made = steps({"image": volume(), "label": label})
    assert set(made["label"].unique().tolist()) == {0, 1, 2, 3}
    assert made["label"].shape[1:] == made["image"].shape[1:]


def test_preprocessing_fragment_takes_an_id_of_images_alone() -> None:
    steps = parsed(preprocessing_fragment("volumes", "@k"), spacing=SPACING, k=["image"])
    alone = parsed(preprocessing_fragment("volumes"), spacing=SPACING)
    assert torch.equal(
        steps({"image": volume()})["image"].as_tensor(),
        alone({"image": volume()})["image"].as_tensor(),
    )


def test_preprocessing_fragment_keeps_monai_labels_path() -> None:
    steps = parsed(preprocessing_fragment("volumes"), spacing=SPACING)
    # A string under image_path is what MONAI Label sends.
    assert steps({"image": volume(), "image_path": "a.nii"})["image_path"] == "a.nii"


def test_preprocessing_fragment_takes_numbers_for_the_spacing() -> None:
    fragment = preprocessing_fragment("slices", pixdim=(1, 1.5, -1))
    assert [step["pixdim"] for step in fragment if "pixdim" in step] == [[1.0, 1.5, -1.0]]


def test_preprocessing_fragment_gives_away_nothing_that_is_shared() -> None:
    changed = preprocessing_fragment("volumes", ["image", "label"])
    for step in changed:
        step.clear()
    assert all(preprocessing_fragment("volumes", ["image", "label"]))


def test_preprocessing_fragment_refuses_other_kinds() -> None:
    with pytest.raises(ValueError, match="kind is 'video': give one of volumes, slices, images"):
        preprocessing_fragment("video")


def test_preprocessing_fragment_refuses_keys_it_cannot_resample() -> None:
    with pytest.raises(ValueError, match="'image' and 'label' can be resampled"):
        preprocessing_fragment("volumes", ["image", "dose"])
