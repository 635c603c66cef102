from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged

from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.gate import check_image
from monai_xtiny.data.images import CheckImaged, load_sample
from tests.conftest import write_nifti, write_png


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
