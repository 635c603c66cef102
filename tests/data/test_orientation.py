from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged
from PIL import Image

from monai_xtiny.data.case import Case
from monai_xtiny.data.cases import find_cases
from monai_xtiny.data.orientation import MIN_IMAGES, measure_orientation, shared_orientation

LOAD = LoadImaged("image", ensure_channel_first=True)


def bodies(count: int, *, noise: float = 1.0) -> list[torch.Tensor]:
    """Images with a bright part at one side, each in noise of its own; (1, 48, 32)."""
    generator = torch.Generator().manual_seed(0)
    body = torch.zeros(1, 48, 32)
    body[:, 4:20, 8:24] = 1
    return [body + noise * torch.randn(body.shape, generator=generator) for _ in range(count)]


def anyhow(images: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every other image turned over."""
    return [image.flip(1, 2) if index % 2 else image for index, image in enumerate(images)]


@pytest.mark.parametrize(
    ("place", "low", "high"), [(list, 0.5, 1.5), (anyhow, -0.15, 0.0)], ids=["alike", "anyhow"]
)
def test_shared_orientation_tells_images_that_lie_alike(place: Callable, low, high) -> None:
    assert low < shared_orientation(place(bodies(20))) < high


def test_shared_orientation_of_what_lies_anyhow_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, 40, 40, generator=generator) for _ in range(32)]
    assert abs(shared_orientation(noise)) < 0.02


def test_shared_orientation_looks_at_neither_brightness_nor_contrast_nor_size() -> None:
    images = bodies(6, noise=0.1)
    other = [images[0] * 200 + 30, *(torch.nn.functional.interpolate(image[None], scale_factor=2)[0]
                                     for image in images[1:])]  # fmt: skip
    assert shared_orientation(other) == pytest.approx(shared_orientation(images), abs=1e-6)


def test_shared_orientation_takes_the_mean_of_the_channels() -> None:
    images = bodies(6)
    color = [torch.cat([image + 1, image, image - 1]) for image in images]
    assert shared_orientation(color) == pytest.approx(shared_orientation(images), abs=1e-6)


def test_a_constant_patch_is_like_no_other() -> None:
    images = bodies(4, noise=0)
    whole = shared_orientation(images)
    # Of the 20 pairs in which five images are, the empty one is in 8.
    assert shared_orientation([*images, torch.zeros(1, 48, 32)]) == pytest.approx(whole * 12 / 20)


def write_bodies(folder: Path, count: int) -> tuple[Case, ...]:
    """A folder of pictures that lie alike."""
    for index, image in enumerate(bodies(count, noise=0.2)):
        pixels = ((image[0].T + 1) * 80).clamp(0, 255).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return find_cases(folder)


def test_measure_orientation_reads_images(tmp_path) -> None:
    found = measure_orientation(write_bodies(tmp_path, MIN_IMAGES), LOAD)
    assert found == pytest.approx(shared_orientation(bodies(MIN_IMAGES, noise=0.2)), abs=0.01)


def test_measure_orientation_says_nothing_of_few_images() -> None:
    missing = [Case(f"{index}.png", (f"{index}.png",), "raster") for index in range(MIN_IMAGES - 1)]
    assert measure_orientation(missing, LOAD) is None


def test_measure_orientation_names_a_broken_image(tmp_path) -> None:
    cases = write_bodies(tmp_path, MIN_IMAGES)
    broken = tmp_path / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"case '07.png': .*repair the file or leave it out"):
        measure_orientation(cases, LOAD)
