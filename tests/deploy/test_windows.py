from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_xtiny.bundle.folder import Bundle
from monai_xtiny.deploy.windows import sample_windows
from tests.conftest import texture, write_nifti, write_png
from tests.deploy.deployed import write_bundle


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_bundle("pictures", tmp_path_factory.mktemp("pictures"))


def test_sample_windows_are_padded_z_scored_pictures(pictures, tmp_path) -> None:
    for index in range(3):
        write_png(tmp_path / f"{index}.png", (40, 30), seed=index)
    windows = sample_windows(Bundle.open(pictures), tmp_path)
    assert [window.shape for window in windows] == [(1, 1, 32, 48)] * 3
    values = texture((40, 30), 0).T.astype(np.float64)
    expected = np.pad((values - values.mean()) / values.std(), ((1, 1), (4, 4)))
    np.testing.assert_allclose(windows[0][0, 0], expected, atol=1e-5)


def test_sample_windows_draws_of_large_pictures_by_seed(pictures, tmp_path) -> None:
    write_png(tmp_path / "large.png", (150, 100))
    state, torch_state = random.getstate(), torch.get_rng_state()
    draws = [
        sample_windows(Bundle.open(pictures), tmp_path, windows_per_image=3, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert [len(windows) for windows in draws] == [3, 3, 3]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0][0], draws[0][1])
    assert random.getstate() == state and torch.equal(torch.get_rng_state(), torch_state)


def test_sample_windows_resamples_volumes_to_the_plan(tmp_path) -> None:
    bundle = write_bundle("volumes", tmp_path)
    affine = np.diag([3.0, 3.0, 5.0, 1.0])
    for case in "vw":
        for channel in range(2):
            path = tmp_path / "images" / f"{case}_000{channel}.nii.gz"
            write_nifti(path, (12, 8, 6), seed=channel, affine=affine)
    windows = sample_windows(Bundle.open(bundle), tmp_path / "images")
    assert len(windows) == 2
    assert all(window.shape == (1, 2, 24, 16, 6) for window in windows)
    # 3 mm voxels become 1.5 mm: (n - 1) 3 / 1.5 + 1 of them, and the rest is padding.
    assert np.count_nonzero((windows[0] != 0).any(axis=(0, 1, 3, 4))) == 23


def test_sample_windows_names_the_case_that_does_not_fit(pictures, tmp_path) -> None:
    write_png(tmp_path / "color.png", (40, 30, 3))
    with pytest.raises(ValueError, match="color.png: the image has 3 channels, and the network"):
        sample_windows(Bundle.open(pictures), tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        sample_windows(Bundle.open(pictures), tmp_path / "nowhere")
