from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged

from monai_xtiny.bundle.templates import configs_dir
from monai_xtiny.bundled.gate import check_image
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.images import CheckImaged, MiddleSliced, load_sample
from tests.conftest import texture, write_nifti, write_png


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_load_sample_names_a_truncated_case(tmp_path) -> None:
    write_nifti(tmp_path / "good.nii.gz")
    truncated(write_nifti(tmp_path / "half.nii.gz", seed=1))
    with pytest.raises(ValueError, match=r"case 'half.nii.gz': cannot be read, EOFError"):
        load_sample(find_cases(tmp_path), LoadImaged("image", ensure_channel_first=True))


def test_load_sample_refuses_differing_shapes(tmp_path) -> None:
    write_png(tmp_path / "a.png")
    write_png(tmp_path / "b.png", (30, 20))
    with pytest.raises(ValueError, match="crop and pad to one patch size"):
        load_sample(find_cases(tmp_path), LoadImaged("image", ensure_channel_first=True))


@pytest.mark.parametrize(
    "value, message", [(np.nan, "1 voxels are NaN"), (np.inf, "NaN or infinite")]
)
def test_check_image_refuses_non_finite_voxels(value, message) -> None:
    image = torch.randn(1, 4, 4)
    image[0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        check_image(image, "a.png")


def test_check_image_names_the_constant_channel() -> None:
    with pytest.raises(ValueError, match="channel 1 is constant"):
        check_image(torch.stack([torch.randn(4, 4), torch.ones(4, 4)]), "a.png")


def test_check_imaged_passes_good_images_on(png_folder) -> None:
    transform = Compose(
        [LoadImaged("image", ensure_channel_first=True), CheckImaged("image", 2, 1)]
    )
    assert len(load_sample(find_cases(png_folder), transform).images) == 6


@pytest.mark.parametrize(
    "arguments, message", [((3, None), "2 spatial dimensions, not 3"), ((2, 4), "1 channels")]
)
def test_check_imaged_refuses_other_dimensions_and_channels(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        CheckImaged("image", *arguments)({"image": torch.randn(1, 4, 4)})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_middle_sliced_takes_the_slice_nearest_to_the_middle_that_shows_something(axis) -> None:
    volume = torch.full((2, 9, 9, 9), -0.3)  # background after normalization
    moved = volume.movedim(axis + 1, 1)
    moved[:, 7, 4, 4], moved[:, 1, 4, 4], moved[:, 5, 0, 0] = 1.0, 2.0, 3.0
    moved[0, 3, 4, 4] = 4.0  # in one channel of two
    taken = MiddleSliced("image", axis, (5, 5))({"image": volume})["image"]
    assert taken.shape == (2, 9, 9)
    assert torch.equal(taken, moved[:, 1]) or torch.equal(taken, moved[:, 7])
    moved[:, 4, 4, 4] = 5.0
    taken = MiddleSliced("image", axis, (5, 5))({"image": volume})["image"]
    assert torch.equal(taken, moved[:, 4])


def test_middle_sliced_takes_the_middle_of_an_empty_volume() -> None:
    volume = torch.zeros(1, 4, 4, 5)
    assert MiddleSliced("image", 2, (2, 2))({"image": volume})["image"].shape == (1, 4, 4)


@pytest.mark.parametrize("spatial_dims", [None, 2])
def test_the_scored_patch_of_a_mostly_empty_volume_shows_what_is_in_it(
    tmp_path, spatial_dims
) -> None:
    for index in range(3):
        values = np.zeros((60, 60, 40), np.float32)
        values[2:34, 3:35, 8:36] = 1 + texture((32, 32, 28), index)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{index}.nii.gz")
    parser = ConfigParser()
    parser.read_config(str(configs_dir() / "search.json"))
    parser.update({"images": str(tmp_path), "spatial_dims": spatial_dims, "progress": False})
    plan, sample = (parser.get_parsed_content(name) for name in ("plan", "sample"))
    assert max(plan.patch_size) <= 32
    for image in sample.images:
        assert image.shape[1:] == plan.patch_size
        inside = image[:, 2:-2, 2:-2]  # of the patch, perhaps padded
        assert float((inside != inside.min()).float().mean()) > 0.9


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (0, 2, 1)], ids=str)
def test_2d_nifti_is_planned_and_loaded_as_it_lies_in_its_file(tmp_path, order) -> None:
    affine = np.diag([0.7, 0.8, 1.0, 1.0])
    affine[:3] = affine[list(order)]
    for index in range(3):
        image = nibabel.Nifti1Image(texture((40, 72), index), affine)
        nibabel.save(image, tmp_path / f"{index}.nii.gz")
    parser = ConfigParser()
    parser.read_config(str(configs_dir() / "search.json"))
    parser.update({"images": str(tmp_path), "progress": False})
    plan, sample = (parser.get_parsed_content(name) for name in ("plan", "sample"))
    assert plan.slice_axis is None and plan.patch_size[0] < plan.patch_size[1]
    expected = texture((40, 72), 0).astype(np.float32)
    found = sample.images[0][0].numpy()
    start = [(edge - size) // 2 for edge, size in zip(found.shape, expected.shape, strict=True)]
    inside = found[start[0] : start[0] + 40, start[1] : start[1] + 72]
    np.testing.assert_allclose(inside, (expected - expected.mean()) / expected.std(), atol=1e-4)
